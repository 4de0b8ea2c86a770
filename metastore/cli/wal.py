"""`metastore wal dump|verify` shows what a write-ahead log holds, and whether a start would accept it.

The commands change nothing. The log of a running node is read as it is at this moment. Its newest group may be half
written, and is then shown as unproven. The node also releases and recycles files; if a file vanishes or changes during
the reading, the reading starts over.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metastore._core.batch import unframe
from metastore._core.codec import PayloadCodec
from metastore._core.entry import MAX_PAYLOAD, decode_entries
from metastore._core.leases import decode_checkpoint, decode_grant, decode_revoke
from metastore._core.op import (
    ALARM,
    COMPACT,
    DELETE_RANGE,
    LEASE_CHECKPOINT,
    LEASE_GRANT,
    LEASE_REVOKE,
    MEMBER,
    PUT,
    TXN,
    Operation,
    decode_op,
)  # fmt: skip
from metastore._core.raft_types import ConfState, decode_conf_change
from metastore._core.wal_records import HEADER_SIZE, RECORD_TYPES
from metastore._core.wal_scan import Recovered, recover, walk
from metastore.api import pb
from metastore.cli import console, snapshot_check
from metastore.codecs import load_all
from metastore.errors import ConfigError, DamagedData, FormatError, MetaStoreError
from metastore.replica.alarms import ACTIVATE, NAMES, decode_change
from metastore.replica.roster import Change, Identity
from metastore.storage.segments import view

#: If the log of a running node seems damaged, it is read again at most so many times.
ATTEMPTS = 5
KINDS = {
    PUT: "put", DELETE_RANGE: "delete", TXN: "txn", COMPACT: "compact", MEMBER: "member", ALARM: "alarm",
    LEASE_GRANT: "grant", LEASE_REVOKE: "revoke", LEASE_CHECKPOINT: "checkpoint",
}  # fmt: skip
ENTRY_TYPES = ("normal", "member", "members")
START, ENTRY, HARD_STATE, SNAPSHOT, MARKER = sorted(RECORD_TYPES)
_NAME = re.compile(r"([0-9a-f]{16})\.wal")
_DAMAGE = re.compile(r"(?P<path>.*): offset (?P<offset>\d+): ")


def parser() -> argparse.ArgumentParser:
    """The options of the subcommand."""
    arg_parser = argparse.ArgumentParser(
        prog="metastore wal", description="Look at a node's write-ahead log; nothing is changed, and the node may run.",
        epilog="exit codes: 0 a start would take this, 2 bad command line or no log there, 4 damaged",
    )  # fmt: skip
    commands = arg_parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = (
        "check the log and the snapshots beside it as a start does; per file: what is proven synced, what is not, what "
        "would be cut"
    )
    command = commands.add_parser("verify", help=text, description=text)
    command.add_argument("dir", metavar="DIR", help="data directory, or its wal folder")
    command.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    text = "print its records, with the operations in them"
    command = commands.add_parser("dump", help=text, description=text)
    command.add_argument("dir", metavar="DIR", help="data directory, or its wal folder")
    command.add_argument("--from", dest="first", metavar="INDEX", type=int, default=0, help="begin at this entry")
    command.add_argument("--limit", metavar="N", type=int, help="end after so many records")
    command.add_argument("--json", action="store_true", help="one JSON object a line")
    return arg_parser


def main(arguments: Sequence[str]) -> int:
    """Run a command; returns the exit code. Raises MetaStoreError."""
    options = parser().parse_args(arguments)
    with Log(find(options.dir)) as log:
        try:
            if options.command == "verify":
                _verify(log, options.json)
            else:
                _dump(log, options)
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader of our output has closed it. Python would try to write the rest once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if log.damage is not None:
        raise log.damage
    return 0


def find(location: str) -> Path:
    """Return the wal folder of a data directory, or the folder itself. Raises ConfigError."""
    path = Path(location)
    try:
        for folder in (path / "wal", path):
            if folder.is_dir() and any(_NAME.fullmatch(name) for name in os.listdir(folder)):
                return folder
    except OSError as error:
        raise ConfigError(f"{location}: cannot be read: {error.strerror}") from error
    raise ConfigError(f"{location}: there is no write-ahead log")


# ---- reading


@dataclass
class File:
    """A segment. `state` is a text for people, and `note` gives further remarks.

    The good records end at `end`, and they are proven synced up to `proven`; both are offsets in bytes.
    """

    path: Path
    generation: int
    data: Any
    state: str = "?"
    end: int = 0
    proven: int = 0
    note: str = ""
    entries: int = 0
    first: int = 0
    last: int = 0

    def records(self) -> Iterator[tuple[int, int, int, int, int, bytes]]:
        """See `walscan.walk`."""
        return walk(self.data, self.generation, HEADER_SIZE, self.end)


@dataclass
class Log:
    """The segments of a folder, judged as a start would judge them. `damage` is the reason why a start
    would refuse them.
    """

    path: Path
    files: list[File] = field(default_factory=list)
    running: bool = False
    damage: DamagedData | None = None
    found: Recovered | None = None
    _lock: int = -1

    def __enter__(self) -> Log:
        try:
            self._lock = os.open(self.path.parent / "LOCK", os.O_RDONLY | os.O_CLOEXEC)
            # The lock is held as long as we read: a node that starts meanwhile would cut files that are mapped here.
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            pass
        except BlockingIOError:
            self.running = True
        except OSError as error:
            raise ConfigError(f"{self.path.parent}/LOCK: cannot be read: {error.strerror}") from error
        for _ in range(ATTEMPTS if self.running else 1):
            if self._read():
                break
        self._judge()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock >= 0:
            os.close(self._lock)

    def _read(self) -> bool:
        """Read all segments and call `recover`. Return False if another attempt may succeed."""
        self.damage = self.recovered = None
        try:
            matches = [match for name in os.listdir(self.path) if (match := _NAME.fullmatch(name))]
            # The newest is read first: what it states about the older ones is then in them, too.
            self.files = [
                File(self.path / match[0], int(match[1], 16), self._data(self.path / match[0]))
                for match in sorted(matches, key=lambda match: match[1], reverse=True)
            ][::-1]
        except DamagedData as error:
            self.damage = error
            return False
        except FileNotFoundError:
            return False
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be read: {error}") from error
        try:
            self.recovered = recover([(str(file.path), file.generation, file.data) for file in self.files])
        except DamagedData as error:
            self.damage = error
        return self.damage is None

    def _data(self, path: Path) -> Any:
        # A part that a running node may cut is not mapped.
        return path.read_bytes() if self.running else view(path)

    def _judge(self) -> None:
        """Set the state of each file."""
        recovered = self.recovered
        for file in self.files:
            if recovered is None:
                file.state, file.end, file.proven = "not judged", len(file.data), 0
            elif file.generation == recovered.last_generation:
                file.state, file.end, file.proven = "newest", recovered.last_end, recovered.proven
            elif file.generation in recovered.used:
                file.state = "proven"
                file.end = file.proven = self._stated_end(file)
            elif file.generation in recovered.spare:
                file.state, file.end, file.proven, file.note = "prepared", 0, 0, "not used yet"
            else:
                file.state, file.end, file.proven, file.note = "left over", 0, 0, "removed at the next start"
            self._count(file)
        if recovered is not None:
            for cut in recovered.cuts:
                self._file(cut.generation).note = f"cut at {cut.offset} to {cut.end} at the next start: {cut.reason}"
        match = _DAMAGE.match(self.damage.text) if self.damage is not None else None
        for file in self.files:
            if match is not None and str(file.path) == match["path"]:
                file.state, file.note = "damaged", f"at offset {match['offset']}"

    def _stated_end(self, file: File) -> int:
        """The end of a segment, as the segment after it states it."""
        after = next(other for other in self.files if other.generation > file.generation)
        for _offset, _type, _group, _synced, _proven, payload in walk(after.data, after.generation):
            return int.from_bytes(payload[8:16], "little")
        return len(file.data)

    def _file(self, generation: int) -> File:
        return next(file for file in self.files if file.generation == generation)

    def _count(self, file: File) -> None:
        end = 0
        for offset, kind, *_, payload in file.records():
            end = offset + 48 + -(-len(payload) // 8) * 8
            if kind == ENTRY:
                index = int.from_bytes(payload[16:24], "little")
                file.first, file.last = file.first or index, index
                file.entries += 1
        file.end = min(file.end, end)

    def segments(self) -> list[File]:
        """The segments that form the log; of a damaged log, all segments."""
        if self.recovered is None:
            return self.files
        return [file for file in self.files if file.generation in self.recovered.used]


# ---- verify


class LogState:
    """The state that the records read so far describe. `take` adds one record."""

    def __init__(self) -> None:
        self.metadata = b""
        self.term = self.vote = self.commit = 0
        self.snapshot = (0, 0)
        self.last = (0, 0)

    def take(self, kind: int, payload: bytes) -> dict[str, Any]:
        """Take one record. Return its fields, except those of entries."""
        numbers = [int.from_bytes(payload[at : at + 8], "little") for at in range(0, min(len(payload), 72) - 7, 8)]
        if kind == START:
            size = int.from_bytes(payload[72:76], "little")
            self.metadata = payload[80 : 80 + size]
            self.snapshot, self.last = (numbers[2], numbers[3]), (numbers[4], numbers[5])
            self.term, self.vote, self.commit = numbers[6:9]
            return {
                "after_segment": numbers[0], "ends_at": numbers[1], "snapshot": numbers[2], "snapshot_term": numbers[3],
                "last": numbers[4], "last_term": numbers[5], "hard_term": self.term, "vote": f"{self.vote:016x}",
                "commit": self.commit,
            }  # fmt: skip
        if kind == HARD_STATE:
            self.term, self.vote, self.commit = numbers
            return {"hard_term": self.term, "vote": f"{self.vote:016x}", "commit": self.commit}
        if kind == SNAPSHOT:
            self.snapshot = (numbers[0], numbers[1])
            self.last = max(self.last, self.snapshot)
            return {"snapshot": numbers[0], "snapshot_term": numbers[1], "members": _members(payload[20:])}
        if kind == ENTRY:
            self.last = (numbers[2], numbers[1])
        return {}


def _members(conf_state: bytes) -> str:
    try:
        state = ConfState.decode(conf_state)
    except MetaStoreError as error:
        return f"unreadable: {error.text}"
    return " ".join(f"{ident:016x}" for ident in (*state.voters, *state.learners))


def _verify(log: Log, as_json: bool) -> None:
    state = LogState()
    for file in log.segments():
        for _offset, kind, *_, payload in file.records():
            state.take(kind, payload)
    summary: dict[str, Any] = {"log": str(log.path), "node": "running" if log.running else "not running"}
    try:
        identity = Identity.decode(state.metadata)
        summary |= {"member id": f"{identity.member_id:016x}", "cluster id": f"{identity.cluster_id:016x}"}
    except FormatError as error:
        log.damage = log.damage or DamagedData(f"{log.path}: {error.text}")
    summary |= {
        "term": state.term, "vote": f"{state.vote:016x}", "commit": state.commit, "snapshot index": state.snapshot[0],
        "snapshot term": state.snapshot[1], "last index": state.last[0], "last term": state.last[1],
    }  # fmt: skip
    beside, note = _beside(log, state)
    summary["verdict"] = f"good{note}" if log.damage is None else "damaged"
    rows = []
    for file in log.files:
        proofs = (file.proven, max(0, file.end - file.proven)) if log.recovered is not None else ("", "")
        indexes = f"{file.first}-{file.last}" if file.entries else ""
        rows.append([file.path.name, len(file.data), file.state, file.entries, indexes, *proofs, file.note])
    heads = ("file", "bytes", "state", "entries", "indexes", "proven to", "unproven", "note")
    if as_json:
        fields = {name.replace(" ", "_"): value for name, value in summary.items()}
        fields["segments"] = [dict(zip((h.replace(" ", "_") for h in heads), row, strict=True)) for row in rows]
        names = snapshot_check.HEADS
        fields["snapshots"] = [dict(zip(names, one.row(), strict=True)) for one in beside]
        fields["damage"] = log.damage.text if log.damage is not None else ""
        print(json.dumps(fields))
        return
    console.facts(log.path.name, summary)
    print()
    console.table(heads, rows)
    if beside:
        print()
        console.table(snapshot_check.HEADS, [one.row() for one in beside])


def _beside(log: Log, log_state: LogState) -> tuple[list[snapshot_check.CheckedSnapshot], str]:
    """Return the snapshots beside a log, and a word for the verdict. A lack of snapshots is damage, too."""
    data_dir, begins = log.path.parent, log_state.snapshot
    folder, engine = data_dir / "snap", data_dir / "engine"
    if log.path.name != "wal" or not (folder.is_dir() or (data_dir / "LOCK").exists()):
        return [], ", its snapshots aside" if begins[0] else ""  # a log that stands alone
    try:
        cluster_id = Identity.decode(log_state.metadata).cluster_id
    except FormatError:
        cluster_id = None
    with console.progress() as tell:
        snapshots = snapshot_check.look(folder, begins[0], cluster_id, tell)
    damage = snapshot_check.missing(folder, begins, cluster_id, snapshots)
    if damage is None or log.damage is not None:
        return snapshots, ""
    if engine.is_dir() and any(engine.iterdir()):
        return snapshots, f", for an engine that goes on from its own data in {engine} (not checked)"
    log.damage = damage
    return snapshots, ""


# ---- dump


def _dump(log: Log, options: argparse.Namespace) -> None:
    left = options.limit if options.limit is not None else 1 << 62
    codec = PayloadCodec(None, 0, MAX_PAYLOAD, decoders=load_all())
    begun = options.first == 0
    log_state = LogState()
    previous = None
    for file in log.segments():
        for offset, kind, group, synced, _proven, payload in file.records():
            fields = log_state.take(kind, payload)
            begun = begun or (kind == ENTRY and log_state.last[0] >= options.first)
            if not begun:
                continue
            if left <= 0:
                return
            left -= 1
            if kind == ENTRY:
                fields = entry_fields(payload, codec)
            place = {"file": file.path.name, "offset": offset, "type": RECORD_TYPES[kind], "group": group}
            place |= {"synced": synced, "proven": log.recovered is not None and offset < file.proven}
            if options.json:
                print(json.dumps({**place, **fields}))
            else:
                _print(place, fields, previous is not file)
                previous = file


def _print(place: dict[str, Any], fields: dict[str, Any], heading: bool) -> None:
    operations = fields.pop("operations", [])
    if heading:
        print(place["file"])
    proof = "" if place["proven"] else " unproven"
    line = " ".join(f"{name}={value}" for name, value in fields.items())
    print(f"{place['offset']:>10}  {place['type']:<10}  group={place['group']} {line}{proof}")
    for operation in operations:
        print(" " * 24 + " ".join(str(v) if k == "op" else f"{k}={v}" for k, v in operation.items()))


def entry_fields(image: bytes, codec: PayloadCodec) -> dict[str, Any]:
    """Return the readable fields of an entry: index, term, type, bytes of its payload, and the operations in it."""
    (entry,) = decode_entries(image)
    fields: dict[str, Any] = {"index": entry.index, "term": entry.term, "entry": ENTRY_TYPES[entry.type]}
    fields["bytes"] = len(entry.data)
    try:
        if entry.type:
            change = decode_conf_change(entry.type, entry.data)
            fields["operations"] = [operation_fields(decode_op(change.context))] if change.context else []
        elif entry.data:
            content = codec.decode(entry.data)
            fields["compressed"] = bool(entry.data[0])
            fields["operations"] = [operation_fields(decode_op(op)) for op in unframe(content)]
    except MetaStoreError as error:
        fields["unreadable"] = error.text
    return fields


def operation_fields(op: Operation) -> dict[str, Any]:
    """Return the readable fields of an operation: its action, its keys, and the sizes of values. Raises
    MetaStoreError."""
    fields: dict[str, Any] = {"op": KINDS.get(op.kind, f"kind {op.kind}"), "id": f"{op.request_id:016x}"}
    if op.kind == PUT:
        put = pb.parse(pb.PutRequest, op.request)
        fields |= {"key": text(put.key), "value_bytes": len(put.value)}
        if put.lease:
            fields["lease"] = lease_id(put.lease)
    elif op.kind == DELETE_RANGE:
        fields |= _range(pb.parse(pb.DeleteRangeRequest, op.request))
    elif op.kind == TXN:
        fields |= _txn(pb.parse(pb.TxnRequest, op.request))
    elif op.kind == COMPACT:
        fields["revision"] = pb.parse(pb.CompactionRequest, op.request).revision
    elif op.kind == MEMBER:
        change = Change.decode(op.request)
        fields |= {"action": change.action, "member": f"{change.member.id:016x}", "name": change.member.name}
        fields["urls"] = ",".join((*change.member.peer_urls, *change.member.client_urls))
        if change.roster is not None:
            fields["roster"] = change.roster.digest
    elif op.kind == LEASE_GRANT:
        lease, ttl = decode_grant(op.request)
        fields |= {"lease": lease_id(lease), "ttl": ttl}
    elif op.kind == LEASE_REVOKE:
        lease, expired = decode_revoke(op.request)
        fields |= {"lease": lease_id(lease), "expired": expired}
    elif op.kind == LEASE_CHECKPOINT:
        fields["remaining"] = ",".join(f"{lease_id(lease)}:{left}" for lease, left in decode_checkpoint(op.request))
    elif op.kind == ALARM:
        action, (member, alarm) = decode_change(op.request)
        fields |= {"action": "raise" if action == ACTIVATE else "clear", "alarm": NAMES.get(alarm, "none")}
        fields["member"] = f"{member:016x}"
    else:
        fields["bytes"] = len(op.request)
    return fields


def lease_id(lease: int) -> str:
    """Return the id of a lease in hexadecimal, as etcdctl shows it."""
    return f"{lease & 0xFFFFFFFFFFFFFFFF:x}"


def _range(request: Any) -> dict[str, Any]:
    fields = {"key": text(request.key)}
    if request.range_end:
        fields["range_end"] = text(request.range_end)
    return fields


def _txn(request: Any) -> dict[str, Any]:
    def branch(operations: Any) -> str:
        return ",".join(_txn_op(item) for item in operations)

    fields = {"if": ",".join(text(compare.key) for compare in request.compare)}
    fields |= {"then": branch(request.success), "else": branch(request.failure)}
    return {name: f"[{value}]" for name, value in fields.items() if value}


def _txn_op(item: Any) -> str:
    which = item.WhichOneof("request")
    if which == "request_txn":
        return "txn"
    if which is None:
        return "nothing"
    return f"{which.removeprefix('request_').removesuffix('_range')}:{text(getattr(item, which).key)}"


def text(key: bytes) -> str:
    """Return a key in readable form. Unprintable characters are escaped, so a key cannot send commands to a
    terminal."""
    return repr(key)[2:-1]
