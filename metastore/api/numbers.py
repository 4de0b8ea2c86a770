"""What the numbers of `stats()` mean: the HELP lines of /metrics."""

from __future__ import annotations

from typing import Final

MEANINGS: Final = {
    "alarms_corrupt": "Members that have raised the alarm CORRUPT.",
    "alarms_nospace": "Members that have raised the alarm NOSPACE: puts are refused while there is one.",
    "auto_compactions_failed_total": "Automatic compactions that failed, since the start.",
    "auto_compactions_total": "Automatic compactions that this member asked for as the leader, since the start.",
    "client_connections": "Open connections of clients.",
    "client_connections_evicted_total": "Idle connections of clients that were closed for newcomers, since the start.",
    "client_connections_refused_total": "Connections of clients that were refused for want of places since the start.",
    "client_reply_bytes": "Bytes of replies that clients have not taken.",
    "client_request_bytes": "Bytes that requests without an answer take.",
    "compact_revision": "The revision of the last compaction: what was before it is no longer readable.",
    "defragments_total": "Calls of Defragment since the start.",
    "disk_full": "1 while there is no room for the log and writes are refused, else 0.",
    "engine_busy_total": "Times that the engine could not take changes and applying waited, since the start.",
    "hashes_total": "Calls of Hash and HashKV since the start.",
    "inflight_bytes": "Bytes of the writes that are admitted and not answered; bounded by limits.max_inflight_bytes.",
    "inflight_requests": "Writes that are admitted and not answered; bounded by limits.max_inflight_requests.",
    "kv_compaction_total": "Calls of Compact since the start, refused ones included.",
    "kv_deleterange_total": "Calls of DeleteRange since the start, refused ones included.",
    "kv_late_bytes": "Bytes that reads of more than one turn hold: their requests and what they have gathered.",
    "kv_late_requests": "Reads that take more than one turn of the loop and are not answered yet.",
    "kv_put_total": "Calls of Put since the start, refused ones included.",
    "kv_range_total": "Calls of Range since the start, refused ones included.",
    "kv_refused_total": "Calls of the KV service that were refused at admission, since the start.",
    "kv_txn_total": "Calls of Txn since the start, refused ones included.",
    "loop_longest_turn_seconds": "The longest turn of the loop since the start, by the clock.",
    "loop_longest_work_seconds": "The longest turn of the loop since the start, in time of its processor.",
    "loop_slow_turns_total": "Turns of the loop that took more processor time than a turn should, since the start.",
    "loop_turn_seconds_total": "Seconds that the loop's turns took, waiting left out, since the start.",
    "loop_turns_total": "Turns of the loop since the start.",
    "payload_bytes_after_total": "Bytes of proposals after compression, since the start.",
    "payload_bytes_before_total": "Bytes of proposals before compression, since the start.",
    "quota_bytes": "The size of the store beyond which puts are refused; 0: no limit.",
    "quota_refused_total": "Puts that were refused because the store was full, since the start.",
    "raft_doubt_term": "Not 0 while this member may have lost acknowledged entries to a power cut and is brought up: "
    "the term that the loss may reach to.",
    "read_ahead_cached_bytes": "Bytes of log entries that are cached for members that are behind.",
    "read_ahead_dropped_total": "Reads of the log that were given up, since the start.",
    "read_ahead_hits_total": "Times that log entries which had left memory were there already, since the start.",
    "read_ahead_misses_total": "Times that somebody waited for log entries which had left memory, since the start.",
    "read_ahead_read_bytes_total": "Bytes of log entries that were read back from the disk, since the start.",
    "snapshot_bytes_total": "Bytes of the snapshot files written since the start.",
    "snapshot_failed_total": "Snapshots that could not be written, since the start.",
    "snapshot_seconds_total": "Seconds spent on writing snapshots since the start.",
    "snapshot_taken_total": "Snapshots written since the start.",
    "sweep_pending": "1 while the room of a compaction is still being given back, else 0.",
    "wal_bytes_total": "Bytes written to the log since the start.",
    "wal_first_index": "Index of the oldest entry that the log still has.",
    "wal_groups_total": "Groups of records that were written to the log together, since the start.",
    "wal_segments": "Files that the log consists of.",
    "wal_sync_interval_seconds": 'With wal.sync = "async" the longest that acknowledged writes stay unsynced; else 0.',
    "wal_sync_pending_seconds": "Seconds for which the log has waited for the disk; 0 while it waits for nothing.",
    "wal_sync_seconds_total": "Seconds spent on syncing the log since the start.",
    "wal_syncs_total": "Syncs of the log since the start.",
    "wal_unsynced_bytes": 'Bytes in the log that are not synced; with wal.sync = "async" a power cut takes them.',
    "wal_unsynced_seconds": "Seconds since the oldest of the unsynced bytes was written.",
    "wal_write_seconds_total": "Seconds spent on writing to the log since the start.",
}


def meaning(name: str) -> str:
    """A sentence about a number; its own words where nobody has written one."""
    return MEANINGS.get(name) or name.replace("_", " ")
