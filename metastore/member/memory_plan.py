"""This module shares out the memory that a process may use, between the store's contents and everything else. Pure.

Everything that grows has a bound in the configuration. `fit` makes the bounds that are at their defaults smaller if the
process may not use much. `plan` leaves free what all of these may take at once, and what the process takes without any
contents. It gives the rest to the contents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import Config

MIB = 1 << 20

#: A bound that is at its default is at most this part of what the process may use.
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
#: These bounds are numbers of things. The process must be able to use so many bytes for each thing.
SHARES = {
    "limits.max_inflight_requests": 64 << 10,
    "limits.max_connections": 128 << 10,
    "limits.max_watches_per_node": 64 << 10,
}
LEAST_REQUESTS = 1000

#: Open calls, complete or not, take at most this part and so many bytes, but at least so many of the largest requests.
CALLS_PART, CALLS_MOST, CALLS_LEAST = 24, 512 * MIB, 4
#: Bytes of memory for a byte in flight, beside its call: its batch, and the log's buffer on the way to the disk.
FLIGHT = 2
#: Bytes of memory for a request in flight, beside its own: headers, stream, waiter.
REQUEST = 2 << 10
#: Bytes of memory for a watcher. Five feeds hold up to twice this part of what finished replies may take.
WATCHER, FEEDS, EVENTS_PART = 1 << 10, 5, 64
#: Chunks of a snapshot that its writer, its verifier, and a sender or receiver hold; bytes that a codec takes.
CHUNKS, CODEC = 6, 8 * MIB
#: One reply takes at most this part and so many bytes, and so do all replies that are being made together. One reply is
#: in memory up to COPIES times while its parts are joined and handed to a connection.
REPLY_PART, REPLY_MOST = 24, 512 * MIB
REPLIES_PART, REPLIES_MOST = 64, 256 * MIB
COPIES = 3
#: Bytes of messages on their way to one peer. Messages to other peers mostly have the same entries.
WINDOW = 16 * MIB
#: This part of what the process may use, and so many bytes, stay free in any case.
MARGIN_PART, MARGIN = 16, 10 * MIB
#: Bytes of memory for a byte of contents while a snapshot walks all contents and all of them change or are deleted:
#: nodes that exist twice, and tombstones. The second number is for the room between pieces that cannot be used.
SPREAD, FRAGMENTS = 1.3, 1.08
#: This is etcd's default. No default of ours is larger.
MOST_QUOTA = 2 << 30
#: No default is smaller: a store may take so much even if no memory is left.
LEAST_QUOTA = 2 * MIB


@dataclass(frozen=True, slots=True)
class Plan:
    """How the memory is shared out. All numbers are bytes.

    room: what the contents may take, with all views and garbage.
    quota: the value of `limits.quota_bytes` with which the contents stay within `room`.
    margin: the distance to the limit at which writes are refused.
    beside: what is left free for everything else, by its name.
    reply, replies: what one reply may take while it is made, and all such replies together.
    calls: what open calls may take.
    """

    room: int
    quota: int
    margin: int
    beside: dict[str, int]
    reply: int
    replies: int
    calls: int


def fit(config: Config, most: int) -> Config:
    """Returns the configuration for a process that may use `most` bytes: bounds at their defaults become smaller."""
    changes: dict[str, dict[str, Any]] = {}
    standard = Config()
    least = {
        "limits.max_inflight_bytes": max(config.raft.batch_max_bytes, config.largest_operation),
        "limits.max_inflight_requests": max(LEAST_REQUESTS, config.raft.batch_max_size),
    }
    bounds = {key: most // part for key, part in PARTS.items()} | {key: most // each for key, each in SHARES.items()}
    for key, bound in bounds.items():
        table, _, name = key.rpartition(".")
        now = config.value(table, name)
        bound = max(bound, least.get(key, 0), 64 << 10 if key in PARTS else 100)
        # A configuration file may name every key with its default. That does not ask for this value.
        if now is not None and bound < now and now == standard.value(table, name):
            changes.setdefault(table, {})[name] = bound
    return config.changed(**_nested(changes)) if changes else config


def _nested(changes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Puts tables into tables, as `Config.changed` takes them."""
    for table in [name for name in changes if "." in name]:
        outer, _, inner = table.partition(".")
        changes.setdefault(outer, {})[inner] = changes.pop(table)
    return changes


def plan(config: Config, most: int, left: int, peers: bool) -> Plan:
    """Shares out the `left` bytes that a process without contents may still take, of `most` in all.

    `peers` says whether there are other members.
    """
    limits = config.limits
    reply = min(REPLY_MOST, most // REPLY_PART)
    # The parts that are gathered for replies may take half of what finished replies may take.
    replies = min(REPLIES_MOST, most // REPLIES_PART, limits.max_reply_bytes // 2)
    calls = max(min(CALLS_MOST, most // CALLS_PART), CALLS_LEAST * config.largest_operation)
    beside = {
        "the log's tail": config.raft.max_tail_bytes,
        "entries read back": config.wal.read_ahead_cache * 3 // 2,
        "calls": calls,
        "requests": FLIGHT * limits.max_inflight_bytes + REQUEST * limits.max_inflight_requests,
        "replies": COPIES * reply + replies + limits.max_reply_bytes,
        "a snapshot": CHUNKS * config.maintenance.snapshot_chunk_size + CODEC,
        "watchers": WATCHER * limits.max_watches_per_node + 2 * FEEDS * limits.max_reply_bytes // EVENTS_PART,
        "peers": WINDOW if peers else 0,
        "margin": most // MARGIN_PART + MARGIN,
    }
    room = max(0, int((left - sum(beside.values())) / FRAGMENTS))
    quota = max(LEAST_QUOTA, int(room / SPREAD))
    room = max(room, int(quota * SPREAD))
    return Plan(room, quota, beside["margin"], beside, reply, replies, calls)
