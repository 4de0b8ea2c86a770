"""The leases of the applied, replicated state, and the forms of their requests and records (FORMATS.md, "Leases").

An id is a signed 64-bit number and never 0. Times are whole seconds. Operations change leases (op.pyi): LEASE_GRANT,
LEASE_REVOKE and LEASE_CHECKPOINT, through `Applier` or `mvcc_lease.execute`.
"""

from collections.abc import Iterable
from typing import Final, Protocol

MAX_CHECKPOINTS: Final[int]  # pairs in one request

class Listener(Protocol):
    """Hears what has become of leases, in the order of the log, when the engine has it and before callers are
    answered. The loop's thread calls it."""

    def changed(self, news: list[tuple[str, int, int]]) -> None:
        """What one commit has done: ("granted", lease, TTL), ("checkpointed", lease, remaining time), ("revoked",
        lease, 0)."""
    def reloaded(self) -> None: ...  # a snapshot has replaced all leases

class Leases:
    """All leases of a store (`Store.leases`), in memory. Their keys are in the engine; here is at most the only one."""

    listener: Listener | None
    @property
    def count(self) -> int: ...
    @property
    def loaded(self) -> bool: ...  # False while a received snapshot is loaded; the other calls then load it at once
    @property
    def nbytes(self) -> int: ...  # of memory that the leases take here, without records
    def ttl(self, lease: int) -> int: ...  # as granted; 0: there is no such lease
    def remaining(self, lease: int) -> int: ...  # by the last checkpoint; 0: none
    def ids(self) -> list[int]: ...  # ascending
    @property
    def part_count(self) -> int: ...
    def part(self, number: int) -> list[int]: ...  # the ids of one of so many parts, in no order
    def count_keys(self, lease: int, most: int) -> int: ...  # `most` + 1: more than `most`
    def keys(self, lease: int, after: bytes = b"", limit: int = 0) -> list[bytes]:
        """The keys that have the lease, ascending, those above `after` only, at most `limit` (0: all).

        While an operation is applied in pieces (`Store.settled` is False) the keys that it has changed are missing or
        there already. Whoever shows keys to clients waits until the store is settled.
        """

def encode_grant(lease: int, ttl: int) -> bytes: ...  # raises ValueError
def encode_revoke(lease: int, by_expiry: bool = False) -> bytes: ...  # raises ValueError
def encode_checkpoint(pairs: Iterable[tuple[int, int]]) -> bytes: ...  # (id, remaining); raises ValueError
def decode_grant(request: bytes) -> tuple[int, int]: ...  # (id, TTL); raises FormatError
def decode_revoke(request: bytes) -> tuple[int, bool]: ...  # (id, by expiry); raises FormatError
def decode_checkpoint(request: bytes) -> list[tuple[int, int]]: ...  # raises FormatError
def without_checkpoint(value: bytes) -> bytes: ...  # of a record of table 'l'; raises DamagedData
