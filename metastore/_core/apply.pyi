from collections.abc import Callable

from typing_extensions import Buffer

from metastore._core.codec import PayloadCodec
from metastore._core.entry import Entry
from metastore._core.mvcc import Store
from metastore._core.waiter import Waiter
from metastore.alarms import Alarms

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
    def __init__(self, store: Store, codec: PayloadCodec, waiters: dict[int, Waiter]) -> None: ...
    def apply_images(self, images: Buffer) -> list[Entry]: ...
    def reload(self) -> None: ...
    def commit(self) -> None: ...
    def release(self) -> int: ...
