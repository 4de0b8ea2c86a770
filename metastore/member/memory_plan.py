"""What of the memory that a process may use goes to the store's contents, and what to everything beside them. Pure.

Everything that grows has a bound in the configuration. Those that are at their defaults are made smaller where the
process may not use much: `fit`. What they all may take at once, and what the process takes without any contents, is
left free: `plan` gives the rest to the contents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import Config

MIB = 1 << 20

#: A bound that is at its default is this part of what the process may use, at most.
PARTS = {
    "raft.max_tail_bytes": 32,
    "wal.read_ahead_cache": 64,
    "limits.max_inflight_bytes": 32,
    "limits.max_reply_bytes": 32,
    "maintenance.snapshot_chunk_size": 128,
    "storage.rocksdb.cache_size": 8,
    "storage.rocksdb.write_buffer_size": 64,
    "storage.rocksdb.recent_keys_size": 64,
}
#: And a number of things: for each of them there is so much of what the process may use.
SHARES = {"limits.max_inflight_requests": 64 << 10, "limits.max_connections": 128 << 10}
LEAST_REQUESTS = 1000

#: Calls that are not over, whole or not: this part, no more than so many bytes, and so many of the largest requests.
CALLS_PART, CALLS_MOST, CALLS_LEAST = 24, 512 * MIB, 4
#: Bytes of memory for a byte in flight beside its call: its batch, the log's buffer on the way to the disk.
FLIGHT = 2
#: Of a request in flight, beside its bytes: headers, stream, waiter.
REQUEST = 2 << 10
#: Chunks of a snapshot that its writer, its verifier, and a sender or receiver hold, and what a codec takes.
CHUNKS, CODEC = 6, 8 * MIB
#: What one reply may be, and all that are being made: these parts, and no more than so many bytes. One is in memory
#: up to COPIES times while its parts are joined and handed to a connection.
REPLY_PART, REPLY_MOST = 24, 512 * MIB
REPLIES_PART, REPLIES_MOST = 64, 256 * MIB
COPIES = 3
#: Messages on their way to one peer; those to others are mostly the same entries.
WINDOW = 16 * MIB
#: Of what the process may use, what stays free in any case: this part and so many bytes.
MARGIN_PART, MARGIN = 16, 10 * MIB
#: Memory for a byte of contents when all are walked by a snapshot and changed meanwhile, or deleted: nodes that are
#: there twice, tombstones; and what malloc cannot use between pieces.
SPREAD, FRAGMENTS = 1.3, 1.08
#: etcd's: no default is larger.
MOST_QUOTA = 2 << 30
#: And none is smaller: so much is allowed where nothing is left.
LEAST_QUOTA = 2 * MIB


@dataclass(frozen=True, slots=True)
class Plan:
    """What the contents may take, in bytes.

    reply, replies: of one reply that is being made, and of all of them. calls: of those that are not over. room: of the
    contents with all views and garbage. quota: of `limits.quota_bytes`, so that `room` holds what goes with it.
    margin: to the limit; with less than that left there are no writes. beside: what is left free for everything else,
    by its name."""

    room: int
    quota: int
    margin: int
    beside: dict[str, int]
    reply: int
    replies: int
    calls: int


def fit(config: Config, most: int) -> Config:
    """The configuration with smaller bounds where it has the defaults, for a process that may use `most` bytes."""
    changes: dict[str, dict[str, Any]] = {}
    standard = Config()
    least = {
        "limits.max_inflight_bytes": max(config.raft.batch_max_bytes, config.largest_operation),
        "limits.max_inflight_requests": max(LEAST_REQUESTS, config.raft.batch_max_size),
    }
    wanted = {key: most // part for key, part in PARTS.items()} | {key: most // each for key, each in SHARES.items()}
    for key, bound in wanted.items():
        table, _, name = key.rpartition(".")
        now = config.value(table, name)
        bound = max(bound, least.get(key, 0), 64 << 10 if key in PARTS else 100)
        # A file that has every key says the defaults too: that is no wish.
        if now is not None and bound < now and now == standard.value(table, name):
            changes.setdefault(table, {})[name] = bound
    return config.changed(**_nested(changes)) if changes else config


def _nested(changes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Tables inside of tables, as `Config.changed` wants them."""
    for table in [name for name in changes if "." in name]:
        outer, _, inner = table.partition(".")
        changes.setdefault(outer, {})[inner] = changes.pop(table)
    return changes


def plan(config: Config, most: int, left: int, peers: bool) -> Plan:
    """Share out the `left` bytes that a process without contents may still take, of `most` in all. `peers`: whether
    there are other members."""
    limits = config.limits
    reply = min(REPLY_MOST, most // REPLY_PART)
    # What is gathered for replies is to be half of what replies are.
    replies = min(REPLIES_MOST, most // REPLIES_PART, limits.max_reply_bytes // 2)
    calls = max(min(CALLS_MOST, most // CALLS_PART), CALLS_LEAST * config.largest_operation)
    beside = {
        "the log's tail": config.raft.max_tail_bytes,
        "entries read back": config.wal.read_ahead_cache * 3 // 2,
        "calls": calls,
        "requests": FLIGHT * limits.max_inflight_bytes + REQUEST * limits.max_inflight_requests,
        "replies": COPIES * reply + replies + limits.max_reply_bytes,
        "a snapshot": CHUNKS * config.maintenance.snapshot_chunk_size + CODEC,
        "peers": WINDOW if peers else 0,
        "margin": most // MARGIN_PART + MARGIN,
    }
    room = max(0, int((left - sum(beside.values())) / FRAGMENTS))
    quota = max(LEAST_QUOTA, int(room / SPREAD))
    room = max(room, int(quota * SPREAD))
    return Plan(room, quota, beside["margin"], beside, reply, replies, calls)
