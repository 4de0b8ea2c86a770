"""HTTP/2 server session and gRPC framing without any I/O."""

from collections.abc import Callable
from typing import Any

from metastore._core.grpc import Limits as Limits
from metastore._core.grpc import MethodTable as MethodTable
from metastore._core.waiter import Waiter
from metastore.errors import MetaStoreError

class Request(Waiter):
    session: Session | None
    stream_id: int
    method: int
    path: bytes
    body: bytes
    closed: bool
    context: Any
    @property
    def headers(self) -> list[tuple[bytes, bytes]]: ...
    @property
    def timeout(self) -> float | None: ...
    @property
    def queued_bytes(self) -> int: ...
    def complete(self, reply: bytes) -> None: ...
    def fail(self, error: MetaStoreError) -> None: ...
    def send(self, message: bytes) -> None: ...
    def finish(self, code: int = 0, text: str = "") -> None: ...
    def start(
        self,
        on_message: Callable[[bytes], object] | None = None,
        on_end: Callable[[], object] | None = None,
        on_close: Callable[[], object] | None = None,
    ) -> None: ...
    def reset(self, code: int = ...) -> None: ...

class Session:
    limits: Limits
    methods: MethodTable
    owner: Any
    pending_output: int
    buffered: int
    taken: int
    open_streams: int
    failed: bool
    greeted: bool
    error: str | None
    def __init__(
        self, methods: MethodTable, limits: Limits | None = None, dirty: list[Session] | None = None
    ) -> None: ...
    @property
    def want_write(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    @property
    def parked_count(self) -> int: ...
    def feed(self, data: bytes | bytearray | memoryview, n: int = -1, now: float = 0.0) -> list[Request]: ...
    def take_output(self, limit: int = ...) -> bytes: ...
    def unpark(self) -> list[Request]: ...
    def shutdown(self) -> None: ...
    def close(self) -> None: ...
