from collections.abc import Callable

from typing_extensions import Buffer

from metastore._core.codec import PayloadCodec
from metastore._core.mvcc import Store
from metastore._core.waiter import Waiter
from metastore.errors import MetaStoreError
from metastore.replica.alarms import Alarms

class Applier:
    store: Store
    codec: PayloadCodec
    waiters: dict[int, Waiter]
    applied_index: int
    applied_term: int
    operations: int
    nbytes: int
    rejected: int
    undecodable: int
    alarms: Alarms
    barred: int
    on_member: Callable[[bytes], bytes] | None
    pause: bool
    inside: bool
    halted: bool
    cost: int
    spill_at: int
    def __init__(self, store: Store, codec: PayloadCodec, waiters: dict[int, Waiter]) -> None: ...
    def apply_images(self, images: Buffer, at: int = 0, budget: int = 0) -> int: ...
    def relieve(self) -> None: ...
    @property
    def halfway(self) -> bool: ...
    @property
    def lengthy(self) -> bool: ...
    @property
    def whole(self) -> bool: ...
    def passed(self, index: int, term: int) -> None: ...
    def answer(self, request_id: int, result: bytes | MetaStoreError) -> None: ...
    def reload(self) -> None: ...
    def commit(self) -> None: ...
    def release(self) -> int: ...
