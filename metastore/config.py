"""Settings: TOML text -> frozen, validated tables; durations and sizes for people; unknown keys refused.

Pure: this module parses text and values and touches no file. `metastore.cli.main` reads the file and hands over the
environment. In the tables a duration is a float in seconds, a size an int in bytes, an address a "host:port" string
(IPv6 in brackets), whatever way it was written.

Sources, the later ones winning: built-in defaults, the TOML text, `METASTORE_<TABLE>__<KEY>` variables, overrides
`table.key=value`. Every refusal is a `ConfigError` that names the source (file and line where known), the key and
the reason.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from metastore.errors import ConfigError

ENV_PREFIX = "METASTORE_"

#: Bytes of the largest frame between members; the same on all of them. An entry has to fit in one, with some heads.
PEER_FRAME = 64 * 1024 * 1024
MAX_BATCH = PEER_FRAME - 64 * 1024
#: Operations in one batch: a leader takes those of a follower's batch at one go, and must not be held up by them.
MAX_BATCH_OPS = 5000
#: What a member's record may hold, which all members keep: bytes of a name and of an address, and addresses.
MAX_NAME = 128
MAX_ADDRESS = 240
MAX_ADDRESSES = 16
MAX_MEMBERS = 128

_DURATION_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d)")
_SIZE = re.compile(r"(\d+)(?:\.(\d+))?\s*([A-Za-z]*)")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9_.-]+)?")


def parse_duration(text: str) -> float:
    """Seconds of a duration such as "100ms", "2s", "1m30s". Raises ValueError with the reason."""
    value = text.strip()
    parts = _DURATION_PART.findall(value)
    if value == "0":
        return 0.0
    if not parts or "".join(number + unit for number, unit in parts) != value:
        raise ValueError(f'{text!r} is no duration: write a number and a unit, such as "100ms", "2s", "1m"')
    return float(sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts))


def parse_size(text: str) -> int:
    """Bytes of a size such as "64MiB", "1.5MiB" or "1024". Raises ValueError with the reason."""
    match = _SIZE.fullmatch(text.strip())
    unit = match[3].upper() if match else None
    if match is None or unit not in _SIZE_UNITS:
        raise ValueError(f'{text!r} is no size: write a number and a unit, such as "4KiB", "64MiB", "1GiB"')
    whole, fraction = match[1], match[2] or ""
    bytes_, rest = divmod(int(whole + fraction) * _SIZE_UNITS[unit], 10 ** len(fraction))
    if rest:
        raise ValueError(f"{text!r} is no whole number of bytes")
    return bytes_


def split_address(text: str) -> tuple[str, int]:
    """(host, port) of "host:port" or "[IPv6]:port"; port 0 asks for a free one. Raises ValueError with the reason."""
    host, colon, port = text.rpartition(":")
    if len(text) > MAX_ADDRESS:
        raise ValueError(f"an address of {len(text)} characters; at most {MAX_ADDRESS}")
    if "://" in text:
        raise ValueError(f'{text!r}: write the address without a scheme, such as "127.0.0.1:2379"')
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f'{text!r} is no address: write "host:port" with a port from 0 to 65535')
    if host.startswith("[") and host.endswith("]"):
        if not _IPV6.fullmatch(host[1:-1]):
            raise ValueError(f"{text!r}: there is no IPv6 address in the brackets")
        return host[1:-1], int(port)
    if ":" in host:
        raise ValueError(f'{text!r}: write an IPv6 address in brackets, such as "[::1]:2379"')
    if not _HOST.fullmatch(host):
        raise ValueError(f'{text!r} has no host name: write "host:port"; "0.0.0.0" listens on all interfaces')
    return host, int(port)


def _wrong(expected: str, value: object) -> ValueError:
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", dict: "a table"}
    found = names.get(type(value), "an array" if isinstance(value, list | tuple) else type(value).__name__)
    return ValueError(f"expected {expected}, found {found}")


def _setting(default: Any, parse: Callable[[object], Any], *, words: bool = False) -> Any:
    """A dataclass field: `default` as people write it, `parse` its check, `words` whether it is a string at heart."""
    metadata = {"parse": parse, "default": default, "words": words}
    if isinstance(default, Mapping):
        return field(default_factory=lambda: parse(default), metadata=metadata)
    return field(default=parse(default), metadata=metadata)


def _text(default: str, *, pattern: re.Pattern[str] | None = None, choices: tuple[str, ...] = ()) -> Any:
    def parse(value: object) -> str:
        if not isinstance(value, str):
            raise _wrong("a string", value)
        if choices and value not in choices:
            raise ValueError(f"{value!r} is not one of {', '.join(map(repr, choices))}{_hint(value, choices)}")
        if pattern is not None and not pattern.fullmatch(value):
            raise ValueError(f"{value!r}: use letters, digits, and . _ - inside")
        if pattern is not None and len(value) > MAX_NAME:
            raise ValueError(f"{len(value)} characters; at most {MAX_NAME}")
        if "\0" in value or (not value and default):
            raise ValueError("is empty" if not value else "holds a NUL character")
        return value

    return _setting(default, parse, words=True)


def _flag(default: bool) -> Any:
    def parse(value: object) -> bool:
        if not isinstance(value, bool):
            raise _wrong("true or false", value)
        return value

    return _setting(default, parse)


def _count(default: int, low: int = 1, high: int = 2**31 - 1) -> Any:
    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong("an integer", value)
        if not low <= value <= high:
            raise ValueError(f"{value} is not between {low} and {high}")
        return value

    return _setting(default, parse)


def _duration(default: str, low: str = "1ms", high: str = "1d") -> Any:
    def parse(value: object) -> float:
        if not isinstance(value, str):
            raise _wrong('a duration such as "100ms" or "2s"', value)
        seconds = parse_duration(value)
        if not parse_duration(low) <= seconds <= parse_duration(high):
            raise ValueError(f"{value!r} is not between {low} and {high}")
        return seconds

    return _setting(default, parse)


def _size(default: str | int, low: str = "1B", high: str = "1TiB") -> Any:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise _wrong('a size such as "64MiB"', value)
        count = parse_size(value) if isinstance(value, str) else value
        if not parse_size(low) <= count <= parse_size(high):
            raise ValueError(f"{value!r} is not between {low} and {high}")
        return count

    return _setting(default, parse)


def _quota(default: str) -> Any:
    size = _size(default, "0B", "1024TiB").metadata["parse"]

    def parse(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and value < 0:
            return -1
        return int(size(value))

    return _setting(default, parse)


def _address(default: str) -> Any:
    def parse(value: object) -> str:
        if not isinstance(value, str):
            raise _wrong('an address such as "127.0.0.1:2379"', value)
        if value or default:
            split_address(value)
        return value

    return _setting(default, parse, words=True)


def _addresses(default: str | tuple[str, ...]) -> Any:
    def parse(value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise _wrong("an address or an array of addresses", value)
        if default and not value:
            raise ValueError("names no address")
        if len(value) > MAX_ADDRESSES:
            raise ValueError(f"{len(value)} addresses; at most {MAX_ADDRESSES}")
        for item in value:
            if split_address(item)[1] and value.count(item) > 1:
                raise ValueError(f"{item!r} is there twice")
        return tuple(value)

    return _setting(default, parse, words=True)


def _members() -> Any:
    def parse(value: object) -> Mapping[str, str]:
        if not isinstance(value, Mapping):
            raise _wrong('a table such as { n1 = "127.0.0.1:2380" }', value)
        if len(value) > MAX_MEMBERS:
            raise ValueError(f"{len(value)} members; at most {MAX_MEMBERS}")
        for name, address in value.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > MAX_NAME:
                raise ValueError(f"{name!r} is no name: use letters, digits, and . _ - inside (at most {MAX_NAME})")
            if not isinstance(address, str):
                raise _wrong(f"an address for {name}", address)
            split_address(address)
        return MappingProxyType(dict(value))

    return _setting({}, parse)


@dataclass(frozen=True, kw_only=True)
class NodeTable:
    """[node]: who this member is, and where its data lies (relative paths: from the working directory)."""

    name: str = _text("n1", pattern=_NAME)
    data_dir: str = _text("data/n1")


@dataclass(frozen=True, kw_only=True)
class ListenTable:
    """[listen]: addresses to bind; port 0 asks for a free port."""

    client: tuple[str, ...] = _addresses("127.0.0.1:2379")
    peer: str = _address("127.0.0.1:2380")


@dataclass(frozen=True, kw_only=True)
class AdvertiseTable:
    """[advertise]: addresses that others dial; empty means the listen addresses."""

    client: tuple[str, ...] = _addresses(())
    peer: str = _address("")


@dataclass(frozen=True, kw_only=True)
class ClusterTable:
    """[cluster]: the group this member belongs to; an empty `initial` means this member alone."""

    token: str = _text("metastore")
    state: str = _text("new", choices=("new", "existing"))
    initial: Mapping[str, str] = _members()
    begin_wait: float = _duration("5s", "0", "1h")


@dataclass(frozen=True, kw_only=True)
class RocksdbTable:
    """[storage.rocksdb]: what the engine "rocksdb" may take, and how it works."""

    cache_size: int = _size("128MiB", "1MiB", "1TiB")
    write_buffer_size: int = _size("32MiB", "64KiB", "4GiB")
    max_write_buffers: int = _count(4, 2, 64)
    recent_keys_size: int = _size("16MiB", "0", "64GiB")
    bloom_bits: int = _count(10, 0, 64)
    block_size: int = _size("8KiB", "1KiB", "1MiB")
    compression: str = _text("lz4", choices=("none", "snappy", "lz4", "zstd"))
    compaction: str = _text("level", choices=("level", "universal"))
    max_background_jobs: int = _count(2, 1, 64)
    max_open_files: int = _count(512, 16, 1_000_000)
    target_file_size: int = _size("32MiB", "64KiB", "4GiB")
    level0_files: int = _count(4, 1, 1000)
    level0_stop: int = _count(36, 2, 10_000)


@dataclass(frozen=True, kw_only=True)
class StorageTable:
    """[storage]: the engine, by its entry point's name, and the options of our own one."""

    engine: str = _text("memory", pattern=_NAME)
    rocksdb: RocksdbTable = RocksdbTable()


@dataclass(frozen=True, kw_only=True)
class RaftTable:
    """[raft]: clock of the group, and how proposals are put together."""

    tick_interval: float = _duration("100ms", "1ms", "1m")
    election_ticks: int = _count(10, 2, 1000)
    heartbeat_ticks: int = _count(1, 1, 1000)
    read_only: str = _text("safe", choices=("safe", "lease"))
    enable_batch_proposal: bool = _flag(True)
    batch_max_size: int = _count(50, 1, MAX_BATCH_OPS)
    batch_max_time: float = _duration("2ms", "0", "10s")
    batch_max_bytes: int = _size("4MiB", "4KiB", "1GiB")
    max_tail_bytes: int = _size("32MiB", "64KiB", "64GiB")

    @property
    def lease_seconds(self) -> float:
        """How long after a heartbeat that a quorum answered the leader reads without asking again; 0: always ask.

        Who answered helps nobody else to be elected for `election_ticks` of its own ticks. The first of these may come
        at once and the second may make up for half a tick: that is why two are left out. A tenth is for the clocks.
        """
        return 0.9 * (self.election_ticks - 2) * self.tick_interval if self.read_only == "lease" else 0.0


@dataclass(frozen=True, kw_only=True)
class WalTable:
    """[wal]: when and how the log reaches the disk, and comes back from it."""

    sync: str = _text("always", choices=("always", "async"))
    sync_interval: float = _duration("10ms", "1ms", "1m")
    async_max_bytes: int = _size("16MiB", "4KiB", "1GiB")
    accept_loss: bool = _flag(False)
    group_commit: bool = _flag(True)
    segment_size: int = _size("64MiB", "64KiB", "4GiB")
    read_ahead_cache: int = _size("16MiB", "64KiB", "64GiB")


@dataclass(frozen=True, kw_only=True)
class PerformanceTable:
    """[performance]: compression of proposals, and what a lone writer's wait may cost."""

    enable_compression: bool = _flag(True)
    compression_codec: str = _text("snappy", pattern=_NAME)
    compression_min_size: int = _size(1024, "0", "1GiB")
    busy_poll: float = _duration("200us", "0", "10ms")


@dataclass(frozen=True, kw_only=True)
class MaintenanceTable:
    """[maintenance]: snapshots, and compaction of history without being asked."""

    snapshot_count: int = _count(10000, 1)
    snapshot_min_size: int = _size("1MiB", "0")
    snapshot_retention: int = _count(3, 1, 1000)
    snapshot_chunk_size: int = _size("4MiB", "4KiB", "64MiB")
    snapshot_chunk_timeout: float = _duration("30s", "100ms")
    snapshot_send_rate: int = _size("0B", "0B")
    enable_snapshot_compression: bool = _flag(True)
    snapshot_compression_codec: str = _text("zstd", pattern=_NAME)
    auto_compaction_mode: str = _text("off", choices=("off", "periodic", "revision"))
    auto_compaction_retention: float = _duration("1h", "1s", "365d")
    auto_compaction_revisions: int = _count(10_000, 1)


@dataclass(frozen=True, kw_only=True)
class LimitsTable:
    """[limits]: the bounds on everything that clients can make grow."""

    memory_bytes: int = _size("0B", "0B", "1024TiB")
    quota_bytes: int = _quota("0B")
    max_request_bytes: int = _size("1.5MiB", "1KiB", "512MiB")
    max_txn_ops: int = _count(128, 1, 1_000_000)
    max_inflight_requests: int = _count(20_000, 1)
    max_inflight_bytes: int = _size("128MiB", "1KiB")
    max_connections: int = _count(10_000, 1, 1_000_000)
    max_concurrent_streams: int = _count(4096, 1)
    max_header_bytes: int = _size("64KiB", "1KiB", "16MiB")
    max_output_bytes: int = _size("16MiB", "64KiB", "16GiB")
    max_reply_bytes: int = _size("256MiB", "1MiB", "1TiB")
    output_timeout: float = _duration("30s", "10ms")
    handshake_timeout: float = _duration("10s", "10ms")
    request_timeout: float = _duration("7s", "1ms")
    drain_timeout: float = _duration("1s", "0", "1m")


@dataclass(frozen=True, kw_only=True)
class LogTable:
    """[log]: the program's own messages, on standard error."""

    level: str = _text("info", choices=("debug", "info", "warning", "error"))
    json: bool = _flag(False)


@dataclass(frozen=True, kw_only=True)
class MetricsTable:
    """[metrics]: the page /metrics on the client port."""

    enabled: bool = _flag(True)


_TABLES: dict[str, type[Any]] = {
    "node": NodeTable,
    "listen": ListenTable,
    "advertise": AdvertiseTable,
    "cluster": ClusterTable,
    "storage": StorageTable,
    "raft": RaftTable,
    "wal": WalTable,
    "performance": PerformanceTable,
    "maintenance": MaintenanceTable,
    "limits": LimitsTable,
    "log": LogTable,
    "metrics": MetricsTable,
}

# Tables inside of tables: their place, and what they are made of.
_NESTED: dict[str, type[Any]] = {"storage.rocksdb": RocksdbTable}


@dataclass(frozen=True)
class _Value:
    """A value as it was written, and where: "conf/metastore.toml:12", "environment variable METASTORE_..."."""

    value: object
    where: str


_Layer = dict[tuple[str, str], _Value]


def _hint(word: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1) or [name for name in names if word and name.startswith(word)]
    return f"; did you mean {close[0]!r}?" if close else ""


def _fields(table: str) -> dict[str, dataclasses.Field[Any]]:
    items = dataclasses.fields(_NESTED.get(table) or _TABLES[table])
    return {item.name: item for item in items if f"{table}.{item.name}" not in _NESTED}


def _all_keys() -> list[str]:
    return [f"{table}.{key}" for table in (*_TABLES, *_NESTED) for key in _fields(table)]


def _refuse_unknown_table(where: str, table: str, what: str) -> None:
    """Raise ConfigError unless `table` exists; `what` it was meant to be: "table" or "key"."""
    if table not in _TABLES and table not in _NESTED:
        homes = [name for name in _all_keys() if name.endswith(f".{table}")]
        hint = f"; did you mean {homes[0]!r}?" if homes else _hint(table, _TABLES)
        raise ConfigError(f"{where}: {table}: unknown {what}{hint}")


def _refuse_unknown(where: str, table: str, key: str) -> None:
    """Raise ConfigError unless `table` and `key` in it exist."""
    _refuse_unknown_table(where, table, "table")
    if key not in _fields(table):
        homes = [name for name in _all_keys() if name.endswith(f".{key}")]
        inside = [name.rpartition(".")[2] for name in _NESTED if name.startswith(f"{table}.")]
        hint = f"; did you mean {homes[0]!r}?" if homes else _hint(key, [*_fields(table), *inside])
        raise ConfigError(f"{where}: {table}.{key}: unknown key{hint}")


def _collect(tables: Mapping[str, Any], where: Callable[[str, str | None], str]) -> _Layer:
    """Flatten {table: {key: value}} after checking the names."""
    layer: _Layer = {}
    for table, content in tables.items():
        _refuse_unknown_table(where(table, None), table, "table" if isinstance(content, Mapping) else "key")
        if not isinstance(content, Mapping):
            raise ConfigError(f"{where(table, None)}: {table}: {_wrong('a table', content)}")
        for key, value in content.items():
            if f"{table}.{key}" in _NESTED:
                layer.update(_collect({f"{table}.{key}": value}, where))
                continue
            _refuse_unknown(where(table, key), table, key)
            layer[table, key] = _Value(value, where(table, key))
    return layer


def _line_of(text: str, table: str, key: str | None) -> int | None:
    """The line of a key in plain TOML text; None when it cannot be told for sure."""
    found, current = [], ""
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\s*([A-Za-z0-9_.-]+)\s*\]\s*(?:#.*)?$", line)
        if header:
            current = header[1]
        wanted = header and current == table if key is None else current == table and not header
        if wanted and (key is None or re.match(rf"\s*{re.escape(key)}\s*[.=]", line)):
            found.append(number)
    return found[0] if len(found) == 1 else None


def _toml_layer(text: str, name: str) -> _Layer:
    import tomli

    try:
        tables = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        line = getattr(error, "lineno", None)
        reason = getattr(error, "msg", str(error))
        raise ConfigError(f"{name}{f':{line}' if line else ''}: not valid TOML: {reason}") from None

    def where(table: str, key: str | None) -> str:
        line = _line_of(text, table, key)
        return name if line is None else f"{name}:{line}"

    return _collect(tables, where)


def _written(where: str, path: list[str], text: str) -> tuple[tuple[str, str], _Value]:
    """One value from a variable or a flag: TOML syntax, plain words allowed for strings."""
    import tomli

    if ".".join(path[:2]) in _NESTED:
        path = [".".join(path[:2]), *path[2:]]
    if len(path) < 2:
        raise ConfigError(f"{where}: {path[0]}: names no key: write table.key=value")
    table, key, *rest = path
    _refuse_unknown(where, table, key)
    try:
        value = tomli.loads(f"v = {text}")["v"] if "\n" not in text else text
    except tomli.TOMLDecodeError:
        value = text
    words = _fields(table)[key].metadata["words"] or bool(rest)
    if words and not isinstance(value, str | list):
        value = text
    for name in reversed(rest):
        value = {name: value}
    return (table, key), _Value(value, where)


def _env_layer(env: Mapping[str, str]) -> _Layer:
    """Variables METASTORE_<TABLE>__<KEY>.

    Names without the double underscore are left alone: METASTORE_DEBUG and its like are switches of the build and of
    the tests, and an orchestrator adds METASTORE_PORT and METASTORE_SERVICE_HOST where a service has our name.
    """
    layer: _Layer = {}
    for variable in sorted(env):
        if variable.startswith(ENV_PREFIX) and "__" in variable:
            path = variable[len(ENV_PREFIX) :].lower().split("__")
            _merge(layer, dict([_written(f"environment variable {variable}", path, env[variable])]))
    return layer


def misspelt_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Variables that lack the double underscore and are a key's name else: given name -> the one that was meant.

    They are not taken, for an orchestrator makes up names of its own; but whoever set one by hand wants to be told.
    """
    meant = {}
    for table in (*_TABLES, *_NESTED):
        for key in _fields(table):
            name = ENV_PREFIX + f"{table}.{key}".upper().replace(".", "__")
            meant[name.replace("__", "_")] = name
    return {given: meant[given] for given in sorted(env) if given in meant}


def _override_layer(overrides: Iterable[str]) -> _Layer:
    layer: _Layer = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: write table.key=value")
        _merge(layer, dict([_written(f"--set {text}", name.strip().split("."), value.strip())]))
    return layer


def _merge(base: _Layer, layer: _Layer) -> None:
    """Put `layer` over `base`; single members given by path join the table that is there."""
    for key, new in layer.items():
        old = base.get(key)
        if old is not None and isinstance(old.value, Mapping) and isinstance(new.value, Mapping):
            new = _Value({**old.value, **new.value}, new.where)
        base[key] = new


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return dict(value) if isinstance(value, Mapping) else value


def _parsed(layer: _Layer, table: str) -> dict[str, Any]:
    """The checked values of one table. Raises ConfigError."""
    values = {}
    for key, item in _fields(table).items():
        given = layer.get((table, key))
        if given is not None:
            try:
                values[key] = item.metadata["parse"](given.value)
            except ValueError as error:
                raise ConfigError(f"{given.where}: {table}.{key}: {error}") from None
    return values


def _check_together(config: Config, layer: _Layer, name: str) -> None:
    """Raise ConfigError for settings that are right each and impossible together."""
    limits, raft, upkeep = config.limits, config.raft, config.maintenance
    clash = [item for item in config.listen.client if item == config.listen.peer and split_address(item)[1]]
    largest = config.largest_operation
    ours = config.cluster.initial.get(config.node.name)
    rules = [
        ("raft.election_ticks", raft.election_ticks <= raft.heartbeat_ticks, "must be more than raft.heartbeat_ticks"),
        (
            "raft.read_only",
            raft.read_only == "lease" and raft.election_ticks < raft.heartbeat_ticks + 4,
            '"lease" needs raft.election_ticks to be at least 4 more than raft.heartbeat_ticks',
        ),
        (
            "raft.batch_max_bytes",
            raft.batch_max_bytes < largest,
            f"must be at least {largest}, for one request of limits.max_request_bytes must fit in a batch",
        ),
        (
            "raft.batch_max_bytes",
            raft.batch_max_bytes > MAX_BATCH,
            f"must be at most {MAX_BATCH}, for an entry must fit in one frame between members ({PEER_FRAME} bytes)",
        ),
        (
            "limits.max_inflight_bytes",
            limits.max_inflight_bytes < largest,
            f"must be at least {largest}, for one request of limits.max_request_bytes must be admitted",
        ),
        (
            "storage.rocksdb.level0_stop",
            config.storage.rocksdb.level0_stop <= config.storage.rocksdb.level0_files,
            "must be more than storage.rocksdb.level0_files",
        ),
        (
            "maintenance.snapshot_send_rate",
            0 < upkeep.snapshot_send_rate * upkeep.snapshot_chunk_timeout < upkeep.snapshot_chunk_size,
            "too little to send maintenance.snapshot_chunk_size within maintenance.snapshot_chunk_timeout",
        ),
        ("listen.peer", bool(clash), f"{config.listen.peer!r} is in listen.client too"),
        ("cluster.initial", ours is None, f"does not name this member, {config.node.name!r} (node.name)"),
    ]
    for path, wrong, reason in rules:
        if wrong:
            table, _, key = path.rpartition(".")
            given = layer.get((table, key))
            raise ConfigError(f"{given.where if given else name}: {path}: {reason}")


class Config:
    """All settings of a node: one attribute for each table.

    `Config(node={"name": "n1", "data_dir": "/tmp/n1"}, listen={"client": "127.0.0.1:0"})` builds one in a program;
    each keyword is a table, given as a mapping of keys to values as in TOML. Raises ConfigError.
    """

    node: NodeTable
    listen: ListenTable
    advertise: AdvertiseTable
    cluster: ClusterTable
    storage: StorageTable
    raft: RaftTable
    wal: WalTable
    performance: PerformanceTable
    maintenance: MaintenanceTable
    limits: LimitsTable
    log: LogTable
    metrics: MetricsTable

    _layer: _Layer

    __slots__ = ("_layer", *_TABLES)

    def __init__(self, **tables: Mapping[str, Any]) -> None:
        self._fill(_collect(tables, lambda table, key: "Config()"), "Config()")

    @classmethod
    def from_dict(cls, tables: Mapping[str, Mapping[str, Any]], name: str = "Config.from_dict") -> Config:
        """The settings of {table: {key: value}}; `name` stands for the file in errors. Raises ConfigError."""
        return cls._made(_collect(tables, lambda table, key: name), name)

    @classmethod
    def from_toml(cls, text: str, name: str = "metastore.toml") -> Config:
        """The settings in TOML text; `name` is the file's name in errors. Raises ConfigError."""
        return cls.load(text, name)

    @classmethod
    def load(
        cls,
        text: str = "",
        name: str = "metastore.toml",
        env: Mapping[str, str] | None = None,
        overrides: Iterable[str] = (),
    ) -> Config:
        """The settings of TOML text under those of environment variables under overrides. Raises ConfigError."""
        layer = _toml_layer(text, name)
        _merge(layer, _env_layer(env or {}))
        _merge(layer, _override_layer(overrides))
        return cls._made(layer, name)

    def changed(self, **tables: Mapping[str, Any]) -> Config:
        """A copy with some keys changed: `config.changed(raft={"batch_max_size": 1})`. Raises ConfigError."""
        layer = dict(self._layer)
        layer.update(_collect(tables, lambda table, key: "Config.changed()"))
        return self._made(layer, "Config.changed()")

    def value(self, table: str, key: str) -> Any:
        """A key's value by its names, `table` perhaps a nested one; None where there is no such key."""
        found: Any = self
        for name in (*table.split("."), key):
            found = getattr(found, name, None)
        return found

    @property
    def largest_operation(self) -> int:
        """Bytes that an operation of `limits.max_request_bytes` may have when it is framed: one byte more for each
        separator inside, and a header."""
        return self.limits.max_request_bytes + self.limits.max_request_bytes // 8 + 1024

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """{table: {key: value}}, durations in seconds and sizes in bytes."""
        return {
            table: {item.name: _plain(getattr(getattr(self, table), item.name)) for item in dataclasses.fields(made)}
            for table, made in _TABLES.items()
        }

    @classmethod
    def _made(cls, layer: _Layer, name: str) -> Config:
        config = cls.__new__(cls)
        config._fill(layer, name)
        return config

    def _fill(self, layer: _Layer, name: str) -> None:
        object.__setattr__(self, "_layer", layer)
        for table, made in _TABLES.items():
            values = _parsed(layer, table)
            for place, inner in _NESTED.items():
                if place.startswith(f"{table}."):
                    values[place.partition(".")[2]] = inner(**_parsed(layer, place))
            if table == "node" and "data_dir" not in values:
                values["data_dir"] = f"data/{values.get('name', 'n1')}"
            if table == "cluster" and not values.get("initial"):
                alone = {self.node.name: self.advertise.peer or self.listen.peer}
                values["initial"] = MappingProxyType(alone)
            object.__setattr__(self, table, made(**values))
        _check_together(self, layer, name)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Config is frozen: use changed() to get a copy with another {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("Config is frozen")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{table}={getattr(self, table)!r}' for table in _TABLES)})"
