"""The settings themselves: each key with its default, its check, what it takes and what it means.

Pure. In the tables a duration is a float in seconds, a size an int in bytes, an address a "host:port" string (IPv6 in
brackets), whatever way it was written. `config.py` reads them from text; `docs/configuration.md` is made of them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .addresses import check_address

#: Bytes of the largest frame between members; the same on all of them. An entry has to fit in one, with some heads.
PEER_FRAME = 64 * 1024 * 1024
MAX_BATCH = PEER_FRAME - 64 * 1024
#: Operations in one batch: a leader takes those of a follower's batch at one go, and must not be held up by them.
MAX_BATCH_OPS = 5000
#: What a member's record may hold, which all members keep: bytes of a name, and addresses.
MAX_NAME = 128
MAX_ADDRESSES = 16
MAX_MEMBERS = 128
#: The `node.data_dir` of a member that has no files.
IN_MEMORY = ":memory:"

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


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, as the end of a sentence; empty when none is near."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1) or [name for name in names if word and name.startswith(word)]
    return f"; did you mean {close[0]!r}?" if close else ""


def wrong_type(expected: str, value: object) -> ValueError:
    """The error of a value that is of another type than the one it should be."""
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", dict: "a table"}
    found = names.get(type(value), "an array" if isinstance(value, list | tuple) else type(value).__name__)
    return ValueError(f"expected {expected}, found {found}")


def _setting(
    default: Any, parse: Callable[[object], Any], meaning: str, allowed: str, *, words: bool = False, unit: bool = False
) -> Any:
    """A dataclass field: `default` as people write it, `parse` its check, `words` whether it is a string at heart,
    `unit` whether it needs a unit in a text.

    `meaning` and `allowed` say to people what it does and which values it takes.
    """
    metadata = {
        "parse": parse, "default": default, "words": words, "unit": unit, "meaning": meaning, "allowed": allowed,
    }  # fmt: skip
    if isinstance(default, Mapping):
        return field(default_factory=lambda: parse(default), metadata=metadata)
    return field(default=parse(default), metadata=metadata)


def _text(
    default: str, meaning: str, *, pattern: re.Pattern[str] | None = None, choices: tuple[str, ...] = (),
    path: bool = False,
) -> Any:  # fmt: skip
    def parse(value: object) -> str:
        if path and hasattr(value, "__fspath__"):
            value = value.__fspath__()
        if not isinstance(value, str):
            raise wrong_type("a string", value)
        if choices and value not in choices:
            raise ValueError(f"{value!r} is not one of {', '.join(map(repr, choices))}{did_you_mean(value, choices)}")
        if pattern is not None and not pattern.fullmatch(value):
            raise ValueError(f"{value!r}: use letters, digits, and . _ - inside")
        if pattern is not None and len(value) > MAX_NAME:
            raise ValueError(f"{len(value)} characters; at most {MAX_NAME}")
        if "\0" in value or (not value and default):
            raise ValueError("is empty" if not value else "holds a NUL character")
        return value

    allowed = ", ".join(f'`"{choice}"`' for choice in choices) or ("a name" if pattern is not None else "text")
    return _setting(default, parse, meaning, allowed, words=True)


def _flag(default: bool, meaning: str) -> Any:
    def parse(value: object) -> bool:
        if not isinstance(value, bool):
            raise wrong_type("true or false", value)
        return value

    return _setting(default, parse, meaning, "`true`, `false`")


def _count(default: int, meaning: str, low: int = 1, high: int = 2**31 - 1) -> Any:
    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise wrong_type("an integer", value)
        if not low <= value <= high:
            raise ValueError(f"{value} is not between {low} and {high}")
        return value

    return _setting(default, parse, meaning, f"{low} to {high}")


def _duration(default: str, meaning: str, low: str = "1ms", high: str = "1d") -> Any:
    def parse(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise wrong_type('a duration such as "100ms" or "2s"', value)
        seconds = parse_duration(value) if isinstance(value, str) else value
        if not parse_duration(low) <= seconds <= parse_duration(high):
            raise ValueError(f"{value!r} is not between {low} and {high}")
        return float(seconds)

    return _setting(default, parse, meaning, f"{low} to {high}", unit=True)


def _size(default: str | int, meaning: str, low: str = "1B", high: str = "1TiB") -> Any:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise wrong_type('a size such as "64MiB"', value)
        count = parse_size(value) if isinstance(value, str) else value
        if not parse_size(low) <= count <= parse_size(high):
            raise ValueError(f"{value!r} is not between {low} and {high}")
        return count

    return _setting(default, parse, meaning, f"{low} to {high}")


def _quota(default: str, meaning: str) -> Any:
    size = _size(default, meaning, "0B", "1024TiB").metadata["parse"]

    def parse(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and value < 0:
            return -1
        return int(size(value))

    return _setting(default, parse, meaning, "-1, or 0B to 1024TiB")


def _address(default: str, meaning: str) -> Any:
    def parse(value: object) -> str:
        if not isinstance(value, str):
            raise wrong_type('an address such as "127.0.0.1:2379"', value)
        if value or default:
            check_address(value)
        return value

    return _setting(default, parse, meaning, "an address", words=True)


def _addresses(default: str | tuple[str, ...], meaning: str) -> Any:
    def parse(value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise wrong_type("an address or an array of addresses", value)
        if default and not value:
            raise ValueError("names no address")
        if len(value) > MAX_ADDRESSES:
            raise ValueError(f"{len(value)} addresses; at most {MAX_ADDRESSES}")
        for item in value:
            if check_address(item)[1] and value.count(item) > 1:
                raise ValueError(f"{item!r} is there twice")
        return tuple(value)

    return _setting(default, parse, meaning, f"1 to {MAX_ADDRESSES} addresses", words=True)


def _members(meaning: str) -> Any:
    def parse(value: object) -> Mapping[str, str]:
        if not isinstance(value, Mapping):
            raise wrong_type('a table such as { n1 = "127.0.0.1:2380" }', value)
        if len(value) > MAX_MEMBERS:
            raise ValueError(f"{len(value)} members; at most {MAX_MEMBERS}")
        for name, address in value.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > MAX_NAME:
                raise ValueError(f"{name!r} is no name: use letters, digits, and . _ - inside (at most {MAX_NAME})")
            if not isinstance(address, str):
                raise wrong_type(f"an address for {name}", address)
            check_address(address)
        return MappingProxyType(dict(value))

    return _setting({}, parse, meaning, f"at most {MAX_MEMBERS} members")


@dataclass(frozen=True)
class Given:
    """A value as it was given, and where: "conf/metastore.toml:12", "environment variable METASTORE_...".

    program: whether a program gave it and not a text. Only a program may give a duration as a number of seconds: in a
    text a number without its unit is too easily meant in another one. text: how a variable or a flag wrote it.
    """

    value: object
    where: str
    program: bool = False
    text: str | None = None


#: The options of a plug-in as they were given.
Options = Mapping[str, Given]


@dataclass(frozen=True, kw_only=True)
class NodeTable:
    """[node]: who this member is, and where its data lies (relative paths: from the working directory)."""

    name: str = _text("n1", "This member's name.", pattern=_NAME)
    data_dir: str = _text(
        "data/n1",
        "The folder of its data, relative to the working directory. The default is `data/` and the name. With "
        '`":memory:"` the member has no files and forgets everything when it stops, for tests.',
        path=True,
    )


@dataclass(frozen=True, kw_only=True)
class ListenTable:
    """[listen]: addresses to bind; port 0 asks for a free port."""

    client: tuple[str, ...] = _addresses(
        "127.0.0.1:2379", "Where clients are served, gRPC and HTTP/1.1: one address, or an array of addresses."
    )
    peer: str = _address("127.0.0.1:2380", "Where the other members are heard. A node that is alone does not open it.")


@dataclass(frozen=True, kw_only=True)
class AdvertiseTable:
    """[advertise]: addresses that others dial; empty means the listen addresses."""

    client: tuple[str, ...] = _addresses((), "What clients are told to dial. The default is the listen addresses.")
    peer: str = _address("", "What the other members are told to dial. The default is the listen address.")


@dataclass(frozen=True, kw_only=True)
class ClusterTable:
    """[cluster]: the group this member belongs to; an empty `initial` means this member alone."""

    token: str = _text("metastore", "Tells clusters apart that would otherwise have the same ids.")
    state: str = _text(
        "new",
        '`"existing"` joins the cluster of the members that `cluster.initial` names.',
        choices=("new", "existing"),
    )
    initial: Mapping[str, str] = _members(
        "Names and peer addresses of the first members. The default is this member alone."
    )
    begin_wait: float = _duration(
        "5s",
        "How long the members of a new cluster wait for those that do not answer, once a majority is there.",
        "0",
        "1h",
    )


@dataclass(frozen=True, kw_only=True)
class RocksdbTable:
    """[storage.rocksdb]: what the engine "rocksdb" may take, and how it works."""

    cache_size: int = _size("128MiB", "Blocks read from files, with their indexes and bloom filters.", "1MiB", "1TiB")
    write_buffer_size: int = _size("32MiB", "Changes gathered in memory before they become a file.", "64KiB", "4GiB")
    max_write_buffers: int = _count(
        4, "How many of these there are. When all wait to be written, no change is taken until one is.", 2, 64
    )
    recent_keys_size: int = _size("16MiB", "What is known of the keys used lately; 0 keeps nothing.", "0", "64GiB")
    bloom_bits: int = _count(10, "Bits of the filter for each key; 0 means no filters.", 0, 64)
    block_size: int = _size("8KiB", "Bytes that are read and compressed at a time.", "1KiB", "1MiB")
    compression: str = _text("lz4", "How blocks are compressed.", choices=("none", "snappy", "lz4", "zstd"))
    compaction: str = _text("level", '`"universal"` writes less and takes more room.', choices=("level", "universal"))
    max_background_jobs: int = _count(2, "Flushes and compactions at a time.", 1, 64)
    max_open_files: int = _count(512, "Files that it keeps open.", 16, 1_000_000)
    target_file_size: int = _size("32MiB", "Size of one file.", "64KiB", "4GiB")
    level0_files: int = _count(4, "Fresh files that begin a compaction.", 1, 1000)
    level0_stop: int = _count(36, "Fresh files at which no change is taken until they are fewer.", 2, 10_000)


@dataclass(frozen=True, kw_only=True)
class StorageTable:
    """[storage]: the engine, by its entry point's name. The options of a plug-in are in a table `[storage.<name>]`."""

    engine: str = _text(
        "memory",
        '`"memory"`, `"rocksdb"`, or a plug-in: the name of an entry point in the group `metastore.storage`.',
        pattern=_NAME,
    )
    rocksdb: RocksdbTable = RocksdbTable()


@dataclass(frozen=True, kw_only=True)
class RaftTable:
    """[raft]: clock of the group, and how proposals are put together."""

    tick_interval: float = _duration(
        "100ms",
        "The clock of the group: elections and heartbeats are counted in ticks. The same on all members.",
        "1ms",
        "1m",
    )
    election_ticks: int = _count(10, "Ticks without a leader before a member calls an election.", 2, 1000)
    heartbeat_ticks: int = _count(1, "Ticks between two heartbeats of the leader.", 1, 1000)
    read_only: str = _text(
        "safe", '`"lease"`: a leader reads without asking the others, and trusts all clocks.', choices=("safe", "lease")
    )
    enable_batch_proposal: bool = _flag(True, "`false` makes one proposal of each operation.")
    batch_max_size: int = _count(
        50,
        "Operations in one proposal; ten times as many small ones of an embedder's `put_many` or Futures.",
        1,
        MAX_BATCH_OPS,
    )
    batch_max_time: float = _duration(
        "2ms", "The longest that an operation waits for others. An idle disk waits for none.", "0", "10s"
    )
    batch_max_bytes: int = _size("4MiB", "Bytes in one proposal; at most the peers' frame less 64 KiB.", "4KiB", "1GiB")
    max_tail_bytes: int = _size("32MiB", "Committed log entries that are kept in memory.", "64KiB", "64GiB")

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

    sync: str = _text(
        "always",
        '`"always"`: nothing is acknowledged before it is synced. `"async"`: acknowledged when written.',
        choices=("always", "async"),
    )
    sync_interval: float = _duration(
        "10ms", 'With `"async"`: the longest that what is acknowledged waits for its sync to begin.', "1ms", "1m"
    )
    async_max_bytes: int = _size(
        "16MiB", 'With `"async"`: the most that is acknowledged and not synced. Then writes wait.', "4KiB", "1GiB"
    )
    accept_loss: bool = _flag(False, "`true`: after a power cut, do not wait for members that may know more.")
    group_commit: bool = _flag(True, "`false`: each proposal waits for a sync of its own.")
    segment_size: int = _size("64MiB", "Size of one file of the log.", "64KiB", "4GiB")
    read_ahead_cache: int = _size(
        "16MiB", "Log entries that left memory, read back for members that are behind and at a start.", "64KiB", "64GiB"
    )


@dataclass(frozen=True, kw_only=True)
class PerformanceTable:
    """[performance]: compression of proposals, and what a lone writer's wait may cost."""

    enable_compression: bool = _flag(True, "Compress proposals.")
    compression_codec: str = _text(
        "snappy",
        '`"snappy"`, `"zstd"`, or a plug-in: the name of an entry point in the group `metastore.codecs`.',
        pattern=_NAME,
    )
    compression_min_size: int = _size(1024, "Smaller proposals stay as they are.", "0", "1GiB")
    pack_peers: bool = _flag(
        False, "Compress what goes to other members, as one stream: fewer bytes for small puts, more processor time."
    )
    busy_poll: float = _duration(
        "200us",
        "How long idle processors are kept awake after a write of a lone client that comes back within this time; "
        '`"0"`: never.',
        "0",
        "10ms",
    )
    gather_time: float = _duration(
        "100us",
        "While several clients write: how long a group waits for more of them before it is synced, in place of a "
        'sync for each few; `"0"`: never.',
        "0",
        "500us",
    )


@dataclass(frozen=True, kw_only=True)
class CodecsTable:
    """[codecs]: the options of codec plug-ins, each in a table `[codecs.<name>]`, where a plug-in takes options."""


@dataclass(frozen=True, kw_only=True)
class MaintenanceTable:
    """[maintenance]: snapshots, and compaction of history without being asked."""

    snapshot_count: int = _count(
        10000, "Log entries after which a snapshot is due, if there are `snapshot_min_size` bytes of them.", 1
    )
    snapshot_min_size: int = _size(
        "1MiB", "Bytes of log entries after which a snapshot is due, if there are `snapshot_count` entries.", "0"
    )
    snapshot_retention: int = _count(3, "Snapshots that are kept: two at least, whatever is said here.", 1, 1000)
    snapshot_chunk_size: int = _size(
        "4MiB", "Bytes of data in one chunk of a snapshot, before compression.", "4KiB", "64MiB"
    )
    snapshot_chunk_timeout: float = _duration(
        "30s", "The longest that one chunk may be on its way to another member.", "100ms"
    )
    snapshot_send_rate: int = _size("0B", "Bytes a second to each member that needs a snapshot; 0: no limit.", "0B")
    enable_snapshot_compression: bool = _flag(True, "Compress snapshots.")
    snapshot_compression_codec: str = _text("zstd", '`"snappy"`, `"zstd"`, or a plug-in.', pattern=_NAME)
    auto_compaction_mode: str = _text(
        "off",
        'Compact the history by age (`"periodic"`) or by number of revisions (`"revision"`).',
        choices=("off", "periodic", "revision"),
    )
    auto_compaction_retention: float = _duration(
        "1h", 'With `"periodic"`: the age of history that stays.', "1s", "365d"
    )
    auto_compaction_revisions: int = _count(10_000, 'With `"revision"`: the revisions that stay.', 1)
    corruption_check_interval: float = _duration(
        "1h",
        "How often the leader compares sums over the data of all members. One that differs gets the alarm CORRUPT. "
        '`"0"`: never.',
        "0",
        "365d",
    )


@dataclass(frozen=True, kw_only=True)
class LimitsTable:
    """[limits]: the bounds on everything that clients can make grow."""

    memory_bytes: int = _size(
        "0B",
        "Memory that this process may use; 0: what the machine, its cgroup and its resource limits allow.",
        "0B",
        "1024TiB",
    )
    quota_bytes: int = _quota(
        "0B", "Size of the store, beyond which puts are refused; 0: 2 GiB, or less where memory is short; -1: no limit."
    )
    max_request_bytes: int = _size("1.5MiB", "One gRPC message from a client.", "1KiB", "512MiB")
    max_key_bytes: int = _size(
        "0B",
        "A key; a zero byte counts twice. 0: no limit but that of the request. For writes the least of all members "
        "counts. A storage engine may need a limit.",
        "0B",
        "512MiB",
    )
    max_txn_ops: int = _count(128, "Operations in each branch of a transaction.", 1, 1_000_000)
    max_txn_walk: int = _count(
        2_000_000, "Keys that a transaction that writes, or all that are under way together, may look at.", 1
    )
    max_inflight_requests: int = _count(
        20_000, "Writes that are not answered yet, and as many linearizable reads that wait.", 1
    )
    max_inflight_bytes: int = _size("128MiB", "Bytes of writes that are not answered yet.", "1KiB")
    max_connections: int = _count(
        10_000, "Connections of clients; fewer where the process may have too few file descriptors.", 1, 1_000_000
    )
    max_concurrent_streams: int = _count(4096, "Requests at a time on one connection.", 1)
    max_header_bytes: int = _size("64KiB", "Headers of one request.", "1KiB", "16MiB")
    max_output_bytes: int = _size(
        "16MiB", "Unread replies on one connection, before its requests are no longer read.", "64KiB", "16GiB"
    )
    max_reply_bytes: int = _size(
        "256MiB", "Unread replies on all connections together, before further reads wait.", "1MiB", "1TiB"
    )
    max_watches_per_stream: int = _count(
        50_000, "Watchers on one stream; one counts as several if its keys are long, one for each 512 bytes.", 1
    )
    max_watches_per_node: int = _count(100_000, "Watchers of all clients together; each takes about 1 KiB.", 1)
    max_lock_calls: int = _count(
        10_000, "Calls of Lock and Election that are under way, waiting ones too; each takes about 10 KiB.", 1
    )
    output_timeout: float = _duration(
        "30s", "A connection that reads under 8 KiB/s of more than 64 KiB of replies is closed after so long.", "10ms"
    )
    handshake_timeout: float = _duration(
        "10s", "Time for a request to be whole, plus a second for each 16 KiB that came.", "10ms"
    )
    request_timeout: float = _duration(
        "7s", "Time for a request to be answered; then it fails with `etcdserver: request timed out`.", "1ms"
    )
    drain_timeout: float = _duration("1s", "On stop: how long requests in flight may take.", "0", "1m")


@dataclass(frozen=True, kw_only=True)
class WatchTable:
    """[watch]: what watchers are told."""

    progress_notify_interval: float = _duration(
        "10m", "Time without events after which a watcher that asked for it is told the revision.", "100ms"
    )


@dataclass(frozen=True, kw_only=True)
class LogTable:
    """[log]: the program's own messages, on standard error."""

    level: str = _text("info", "The least level that is written.", choices=("debug", "info", "warning", "error"))
    json: bool = _flag(False, "One JSON object a line instead of text.")


@dataclass(frozen=True, kw_only=True)
class MetricsTable:
    """[metrics]: the page /metrics on the client port."""

    enabled: bool = _flag(True, "Serve the page `/metrics`.")


TABLES: dict[str, type[Any]] = {
    "node": NodeTable,
    "listen": ListenTable,
    "advertise": AdvertiseTable,
    "cluster": ClusterTable,
    "storage": StorageTable,
    "raft": RaftTable,
    "wal": WalTable,
    "performance": PerformanceTable,
    "codecs": CodecsTable,
    "maintenance": MaintenanceTable,
    "limits": LimitsTable,
    "watch": WatchTable,
    "log": LogTable,
    "metrics": MetricsTable,
}

# Tables inside of tables: their place, and what they are made of.
NESTED: dict[str, type[Any]] = {"storage.rocksdb": RocksdbTable}


def is_plugin_table(table: str, key: str) -> bool:
    """Whether `table.key` is the place of a table with the options of a plug-in, which names its keys itself."""
    ours = f"{table}.{key}" in NESTED or key in StorageTable.__dataclass_fields__
    return table == "codecs" or (table == "storage" and not ours)
