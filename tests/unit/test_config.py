"""Settings: the accepted values, the refused ones with their texts, and the order of the sources."""

from __future__ import annotations

import ast
import re

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT

from metastore.addresses import check_address, split_address
from metastore.config import Config, Tables, fields
from metastore.errors import ConfigError
from metastore.settings import NESTED, TABLES, parse_duration, parse_size

CONF = ROOT / "conf" / "metastore.toml"


def refusal(text: str = "", **options: object) -> str:
    """Return the text of the ConfigError for this configuration."""
    with pytest.raises(ConfigError) as failure:
        Config.load(text, "m.toml", **options)
    return failure.value.text


def test_defaults_are_those_of_the_design() -> None:
    config = Config()
    assert config.node.name == "n1" and config.node.data_dir == "data/n1"
    assert config.listen.client == ("127.0.0.1:2379",) and config.listen.peer == "127.0.0.1:2380"
    assert config.cluster.initial == {"n1": "127.0.0.1:2380"}
    assert (config.raft.tick_interval, config.raft.election_ticks, config.raft.heartbeat_ticks) == (0.1, 10, 1)
    assert (config.raft.batch_max_size, config.raft.batch_max_time) == (50, 0.002)
    assert config.wal.segment_size == 64 << 20 and config.wal.sync_interval == 0.01 and config.wal.group_commit
    assert config.performance.compression_codec == "snappy" and config.performance.compression_min_size == 1024
    assert config.maintenance.snapshot_chunk_size == 4 << 20 and config.maintenance.snapshot_retention == 3
    assert config.limits.max_request_bytes == 1572864 and config.limits.max_txn_ops == 128
    assert config.limits.request_timeout == 7.0


def test_type_checkers_know_the_tables() -> None:
    assert list(Tables.__annotations__) == list(TABLES)


def test_conf_file_gives_the_defaults_and_names_every_key() -> None:
    text = CONF.read_text()
    # The one setting that an operator should have and that is off by default, as in etcd.
    sample = Config.from_toml(text, str(CONF))
    assert sample.maintenance.auto_compaction_mode == "periodic"
    assert sample == Config(maintenance={"auto_compaction_mode": "periodic"})
    for table in (*TABLES, *NESTED):
        section = text.split(f"\n[{table}]", 1)[1].split("\n[", 1)[0]
        for key in fields(table):
            assert re.search(rf"^(# )?{key} = ", section, re.MULTILINE), f"{table}.{key} is not in {CONF.name}"


def test_a_lease_is_shorter_than_an_election_timeout() -> None:
    assert Config().raft.lease_seconds == 0.0
    assert Config(raft={"read_only": "lease"}).raft.lease_seconds == pytest.approx(0.72)
    slow = Config(raft={"read_only": "lease", "tick_interval": "1s", "election_ticks": 5})
    assert slow.raft.lease_seconds == pytest.approx(2.7)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("100ms", 0.1), ("2s", 2.0), ("1m", 60.0), ("1m30s", 90.0), ("1.5h", 5400.0), ("250us", 0.00025), ("0", 0.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "ms", "5 s x", "-1s", "1s2", "1,5s", "1sec", "1e3s", "1 s"])
def test_wrong_durations(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("64MiB", 64 << 20), ("1.5MiB", 1572864), ("1024", 1024), ("10KB", 10_000), ("2 GiB", 2 << 30), ("0.5KiB", 512)],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1MiBs", "1..5MiB", "0x10", "1e3"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "quota"), [("-1", -1), ("-500", -1), ("0", 0), ('"0B"', 0), ("1000", 1000), ('"8GiB"', 8 << 30)]
)
def test_a_quota_can_be_none(text: str, quota: int) -> None:
    assert Config.from_toml(f"[limits]\nquota_bytes = {text}").limits.quota_bytes == quota


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[limits]\nquota_bytes = "-1MiB"', "is no size"),
        ("[limits]\nquota_bytes = true", "expected a size"),
        ('[limits]\nquota_bytes = "2000TiB"', "is not between"),
        ('[maintenance]\nauto_compaction_mode = "peridic"', "did you mean 'periodic'"),
        ('[maintenance]\nauto_compaction_retention = "10ms"', "is not between 1s and 365d"),
        ("[maintenance]\nauto_compaction_retention = 1000", "expected a duration"),
        ("[maintenance]\nauto_compaction_revisions = 0", "is not between"),
    ],
)
def test_wrong_upkeep(text: str, reason: str) -> None:
    assert re.search(reason, refusal(text))


def test_a_size_is_a_whole_number_of_bytes() -> None:
    with pytest.raises(ValueError, match="whole number"):
        parse_size("1.0001KiB")


@given(st.integers(0, 2**50), st.sampled_from(["B", "KiB", "MiB", "KB"]))
def test_a_size_reads_back(count: int, unit: str) -> None:
    assert parse_size(f"{count}{unit}") == count * parse_size(f"1{unit}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:2379", ("127.0.0.1", 2379)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:2379", ("::1", 2379)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
        ("db-1.example.org.:65535", ("db-1.example.org.", 65535)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert check_address(text) == split_address(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("127.0.0.1", "is no address"),
        ("127.0.0.1:65536", "is no address"),
        ("127.0.0.1:-1", "is no address"),
        ("::1:2379", "in brackets"),
        ("[::1]", "is no address"),
        ("[x]:1", "no IPv6 address"),
        (":2379", "no host name"),
        ("http://127.0.0.1:2379", "without a scheme"),
        ("a b:1", "no host name"),
    ],
)
def test_wrong_addresses(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_address(text)


def test_listen_client_takes_one_address_or_a_list() -> None:
    assert Config.from_toml('[listen]\nclient = "[::1]:0"').listen.client == ("[::1]:0",)
    two = Config.from_toml('[listen]\nclient = ["127.0.0.1:0", "127.0.0.1:0"]')
    assert two.listen.client == ("127.0.0.1:0", "127.0.0.1:0")
    assert "is there twice" in refusal('[listen]\nclient = ["127.0.0.1:1", "127.0.0.1:1"]')
    assert "names no address" in refusal("[listen]\nclient = []")
    assert "is in listen.client too" in refusal('[listen]\nclient = "127.0.0.1:5"\npeer = "127.0.0.1:5"')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[raft]\nbatch_maxsize = 3", "m.toml:2: raft.batch_maxsize: unknown key; did you mean 'batch_max_size'?"),
        ("[node]\nsegment_size = 3", "m.toml:2: node.segment_size: unknown key; did you mean 'wal.segment_size'?"),
        ("[rft]\nx = 1", "m.toml:1: rft: unknown table; did you mean 'raft'?"),
        ('name = "x"', "m.toml: name: unknown key; did you mean 'node.name'?"),
        ("raft = 3", "m.toml: raft: expected a table, found an integer"),
        (
            "# a comment\n[raft]\ntick_interval = 1",
            'm.toml:3: raft.tick_interval: expected a duration such as "100ms" or "2s", found an integer',
        ),
        ("[wal]\ngroup_commit = 1", "m.toml:2: wal.group_commit: expected true or false, found an integer"),
        ("[raft]\nbatch_max_size = true", "m.toml:2: raft.batch_max_size: expected an integer, found a boolean"),
        ("[raft]\nbatch_max_size = 0", "m.toml:2: raft.batch_max_size: 0 is not between 1 and 5000"),
        ('[wal]\nsegment_size = "1KiB"', "m.toml:2: wal.segment_size: '1KiB' is not between 64KiB and 4GiB"),
        (
            '[log]\nlevel = "warn"',
            "m.toml:2: log.level: 'warn' is not one of 'debug', 'info', 'warning', 'error'; did you mean 'warning'?",
        ),
        ('[node]\ndata_dir = ""', "m.toml:2: node.data_dir: is empty"),
        ('[node]\nname = "a b"', "m.toml:2: node.name: 'a b': use letters, digits, and . _ - inside"),
        ("[cluster]\ninitial = { n1 = 3 }", "m.toml:2: cluster.initial: expected an address for n1, found an integer"),
    ],
)
def test_refusals_name_file_line_key_and_reason(text: str, expected: str) -> None:
    assert refusal(text) == expected


def test_broken_toml_is_refused_with_its_line() -> None:
    assert refusal("[raft]\n\nelection_ticks =\n").startswith("m.toml:3: not valid TOML: ")


def test_no_line_is_better_than_a_wrong_line() -> None:
    text = '[node]\nname = "n1"\ndata_dir = """\n[raft]\nnope = 1\n"""\n[raft]\nnope = 1\n'
    assert refusal(text) == "m.toml: raft.nope: unknown key"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[raft]\nelection_ticks = 3\nheartbeat_ticks = 3",
            "m.toml:2: raft.election_ticks: must be more than raft.heartbeat_ticks",
        ),
        (
            '[raft]\nread_only = "lease"\nelection_ticks = 4',
            'm.toml:2: raft.read_only: "lease" needs raft.election_ticks to be at least 4 more than '
            "raft.heartbeat_ticks",
        ),
        ('[raft]\nread_only = "fast"', "m.toml:2: raft.read_only: 'fast' is not one of 'safe', 'lease'"),
        (
            '[limits]\nmax_request_bytes = "8MiB"',
            "m.toml: raft.batch_max_bytes: must be at least 9438208, "
            "for one request of limits.max_request_bytes must fit in a batch",
        ),
        (
            '[raft]\nbatch_max_bytes = "64MiB"',
            "m.toml:2: raft.batch_max_bytes: must be at most 67043328, "
            "for an entry must fit in one frame between members (67108864 bytes)",
        ),
        ('[node]\nname = "' + "n" * 129 + '"', "m.toml:2: node.name: 129 characters; at most 128"),
        (
            f"[listen]\nclient = {[f'127.0.0.1:{port}' for port in range(1, 18)]}",
            "m.toml:2: listen.client: 17 addresses; at most 16",
        ),
        (
            '[limits]\nmax_inflight_bytes = "1KiB"',
            "m.toml:2: limits.max_inflight_bytes: must be at least 1770496, "
            "for one request of limits.max_request_bytes must be admitted",
        ),
        (
            '[cluster]\ninitial = { n2 = "127.0.0.1:2380" }',
            "m.toml:2: cluster.initial: does not name this member, 'n1' (node.name)",
        ),
        (
            '[maintenance]\nsnapshot_send_rate = "100KiB"',
            "m.toml:2: maintenance.snapshot_send_rate: too little to send maintenance.snapshot_chunk_size within "
            "maintenance.snapshot_chunk_timeout",
        ),
    ],
)
def test_impossible_combinations(text: str, expected: str) -> None:
    assert refusal(text) == expected


def test_variables_override_the_file_and_flags_override_both() -> None:
    text = '[raft]\nbatch_max_size = 1\nbatch_max_time = "1ms"\n[node]\nname = "file"'
    env = {"METASTORE_RAFT__BATCH_MAX_SIZE": "2", "METASTORE_RAFT__BATCH_MAX_TIME": "3ms", "PATH": "/bin"}
    config = Config.load(text, "m.toml", env, ["raft.batch_max_time=4ms"])
    assert config.node.name == "file"
    assert (config.raft.batch_max_size, config.raft.batch_max_time) == (2, 0.004)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("raft.enable_batch_proposal=false", "raft.enable_batch_proposal", False),
        ("node.name=plain", "node.name", "plain"),
        ('node.name="quoted"', "node.name", "quoted"),
        ("node.name=1", "node.name", "1"),
        ("wal.segment_size=1MiB", "wal.segment_size", 1 << 20),
        ("wal.segment_size=1048576", "wal.segment_size", 1 << 20),
        ('listen.client=["127.0.0.1:0","[::1]:0"]', "listen.client", ("127.0.0.1:0", "[::1]:0")),
        ("node.data_dir=a=b", "node.data_dir", "a=b"),
        ("cluster.initial.n1=127.0.0.1:5", "cluster.initial", {"n1": "127.0.0.1:5"}),
        ('cluster.initial={ n1 = "127.0.0.1:6" }', "cluster.initial", {"n1": "127.0.0.1:6"}),
    ],
)
def test_values_of_overrides(override: str, path: str, value: object) -> None:
    table, key = path.split(".")
    assert getattr(getattr(Config.load(overrides=[override]), table), key) == value
    name, _, text = override.partition("=")
    env = {"METASTORE_" + name.upper().replace(".", "__"): text}
    assert getattr(getattr(Config.load(env=env), table), key) == value


def test_single_members_join_the_table_of_the_file() -> None:
    text = '[cluster]\ninitial = { n1 = "127.0.0.1:1" }'
    both = Config.load(text, overrides=["cluster.initial.n2=127.0.0.1:2"]).cluster.initial
    assert both == {"n1": "127.0.0.1:1", "n2": "127.0.0.1:2"}
    assert Config.load(text, overrides=["cluster.initial.n1=127.0.0.1:3"]).cluster.initial == {"n1": "127.0.0.1:3"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"env": {"METASTORE_RAFT__BATCH_MAXSIZE": "1"}},
            "environment variable METASTORE_RAFT__BATCH_MAXSIZE: raft.batch_maxsize: unknown key; "
            "did you mean 'batch_max_size'?",
        ),
        (
            {"env": {"METASTORE_RAFT__BATCH_MAX_SIZE": "many"}},
            "environment variable METASTORE_RAFT__BATCH_MAX_SIZE: raft.batch_max_size: "
            "expected an integer, found a string",
        ),
        ({"overrides": ["raft"]}, "--set raft: write table.key=value"),
        ({"overrides": ["raft=1"]}, "--set raft=1: raft: names no key: write table.key=value"),
        ({"overrides": ["raft.x=1\ny=2"]}, "--set raft.x=1\ny=2: raft.x: unknown key"),
        ({"overrides": ["raft.batch_max_size.x=1"]}, None),
    ],
)
def test_wrong_overrides(options: dict[str, object], expected: str | None) -> None:
    text = refusal(**options)
    assert expected is None or text == expected


def test_other_variables_are_left_alone() -> None:
    assert Config.load(env={"METASTORE_DEBUG": "1", "METASTORE_PORT": "tcp://10.0.0.1:2379"}) == Config()


def test_data_directory_follows_the_name() -> None:
    assert Config(node={"name": "blue"}).node.data_dir == "data/blue"
    assert Config(node={"name": "blue", "data_dir": "x"}).node.data_dir == "x"


def test_embedding_forms_agree() -> None:
    config = Config(node={"name": "a"}, listen={"client": "127.0.0.1:0"}, raft={"batch_max_time": "5ms"})
    same = Config.from_dict({"node": {"name": "a"}, "listen": {"client": "127.0.0.1:0"}}).changed(
        raft={"batch_max_time": "5ms"}
    )
    assert config == same and config != Config()
    with pytest.raises(ConfigError, match=r"Config\(\): raft.batch_max_sise: unknown key; did you mean"):
        Config(raft={"batch_max_sise": 1})
    with pytest.raises(ConfigError, match="unknown table"):
        Config(rapt={})


def test_changed_keeps_the_rest_and_the_checks() -> None:
    config = Config(node={"name": "a"})
    assert config.changed(wal={"group_commit": False}).node.name == "a"
    assert config.wal.group_commit
    with pytest.raises(ConfigError, match="election_ticks"):
        config.changed(raft={"heartbeat_ticks": 10})


def test_a_config_cannot_be_changed_in_place() -> None:
    config = Config()
    with pytest.raises(AttributeError):
        config.raft = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        config.raft.batch_max_size = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.cluster.initial["n2"] = "x:1"  # type: ignore[index]


def test_to_dict_reads_back() -> None:
    plain = Config().to_dict()
    assert plain["raft"]["tick_interval"] == 0.1 and plain["cluster"]["initial"] == {"n1": "127.0.0.1:2380"}
    assert tomli.loads(CONF.read_text()).keys() == plain.keys()


def test_every_key_is_read_by_somebody() -> None:
    """Nothing read metrics.enabled once: the page was there whatever the setting was."""
    read = set()
    for path in (CONF.parent.parent / "metastore").rglob("*.py"):
        if path.name != "config.py":
            read |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    for path in (CONF.parent.parent / "metastore").rglob("*.pyx"):
        read |= set(re.findall(r"\.([a-z]\w*)", path.read_text()))
    assert [f"{table}.{key}" for table in (*TABLES, *NESTED) for key in fields(table) if key not in read] == []
