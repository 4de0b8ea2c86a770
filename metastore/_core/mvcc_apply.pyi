"""Turns committed entries into changes and results."""

from collections.abc import Callable

from typing_extensions import Buffer

from metastore._core.codec import PayloadCodec
from metastore._core.mvcc import Store
from metastore._core.waiter import Waiter
from metastore.errors import MetaStoreError
from metastore.replica.alarms import Alarms

def no_members(request: bytes) -> bytes: ...  # the `on_member` of a program that keeps no roster

class Applier:
    """Applies committed entries to a store and keeps the results until they are written. For each Ready the caller
    calls apply_images() until it has reached the end of the images, then commit(), then release()."""

    pause: bool  # stop behind the entry under way
    spill_at: int  # with so many records in the overlay a part of an entry goes to the engine
    def __init__(
        self,
        store: Store,
        codec: PayloadCodec,
        waiters: dict[int, Waiter],
        on_member: Callable[[bytes], bytes] = ...,  # carries out an operation of kind MEMBER, and returns the reply
    ) -> None: ...
    @property
    def store(self) -> Store: ...
    @property
    def codec(self) -> PayloadCodec: ...
    @property
    def waiters(self) -> dict[int, Waiter]: ...  # by request id
    @property
    def applied_index(self) -> int: ...  # of the last entry that has ended
    @property
    def applied_term(self) -> int: ...
    @property
    def operations(self) -> int: ...  # applied, also those that ended in an error
    @property
    def nbytes(self) -> int: ...  # decompressed bytes of the batches applied
    @property
    def rejected(self) -> int: ...  # operations that ended in an error
    @property
    def undecodable(self) -> int: ...  # operations among these that could not be decoded
    @property
    def alarms(self) -> Alarms: ...  # of the state as applied
    @property
    def barred(self) -> int: ...  # kinds of those alarms as bits
    @property
    def inside(self) -> bool: ...  # an entry has been begun and has not ended
    @property
    def halted(self) -> bool: ...  # the last call stopped because its budget was used up
    @property
    def cost(self) -> int: ...  # units (work.pxd) that the last call took
    @property
    def halfway(self) -> bool: ...  # something must come to its end before `commit`
    @property
    def lengthy(self) -> bool: ...  # an operation is under way that takes several pieces by itself
    @property
    def whole(self) -> bool: ...  # neither the engine nor the overlay holds a part of an entry
    def apply_images(self, images: Buffer, at: int = 0, budget: int = 0) -> int:
        """Apply concatenated entry images from the byte offset `at` on. Return the offset where it stopped: at the
        end, in front of an entry that changes the membership, behind an entry that set `pause`, or with `halted`
        when `budget` units (0: no bound) are used up. Raises FormatError, MemoryError and engine errors."""

    def relieve(self) -> None: ...  # after `halted`; raises EngineBusy and what the engine raises
    def passed(self, index: int, term: int) -> None: ...  # the caller has carried out this entry
    def answer(self, request_id: int, result: bytes | MetaStoreError) -> None: ...  # kept until `release`
    def reload(self) -> None: ...  # after the engine's contents were replaced
    def commit(self) -> None: ...  # only between two entries; raises what Engine.write raises
    def unanswered(self) -> list[Waiter]: ...  # for another thread, while the member's own one stands still
    def release(self) -> int: ...  # answer the waiters gathered since the last release; returns their number
