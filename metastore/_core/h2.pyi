"""HTTP/2 server session and gRPC framing without any I/O."""

from collections.abc import Callable
from typing import Any

from metastore._core.grpc import Limits as Limits
from metastore._core.grpc import MethodTable as MethodTable
from metastore._core.waiter import Waiter
from metastore.errors import MetaStoreError

class Request(Waiter):
    """One gRPC call. Answer it with `complete` or `fail`, or by `start`, `send`, `finish` when it streams. All of these
    may be called at any time and do nothing once the call is answered or its stream is gone."""

    session: Session | None  # None once the stream is gone
    stream_id: int
    method: int  # id from the MethodTable
    path: bytes
    body: bytes  # the one message of a call that is not client-streaming, without its prefix
    closed: bool  # the stream is gone: answers go nowhere
    context: Any  # the server's own
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
    """The server's side of one HTTP/2 connection. `feed` and `take_output` never raise for what the client sent; what
    `on_message`, `on_end` and `on_close` of streaming calls raise (other than ApiError from `on_message`) comes out."""

    limits: Limits
    methods: MethodTable
    owner: Any  # the connection, for whoever walks `dirty`
    pending_output: int  # reply bytes not taken yet
    buffered: int  # request bytes not answered yet
    taken: int  # bytes ever given out by take_output
    open_streams: int
    failed: bool
    greeted: bool  # the client's SETTINGS came
    error: str | None  # why it failed, or which flood ended it
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
