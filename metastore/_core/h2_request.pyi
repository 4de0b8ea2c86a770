"""One gRPC call on an HTTP/2 stream."""

from collections.abc import Callable
from typing import Any

from metastore._core.grpc import Limits
from metastore._core.h2_link import Link
from metastore._core.waiter import Waiter
from metastore.errors import MetaStoreError

class Request(Waiter):
    """One gRPC call. Answer it with `complete` or `fail`; if it streams, with `start`, `send` and `finish`. All these
    may be called at any time, and have no effect once the call is answered or its stream is gone."""

    session: Link | None  # None once the stream is gone
    stream_id: int
    method: int  # id from the MethodTable
    path: bytes
    body: bytes  # the one message of a call that is not client-streaming, without its prefix; None once answered
    closed: bool  # the stream is gone, and answers have no effect
    context: Any  # any object that the server keeps with the call
    ident: int  # request id of the operation that the call became; 0: none
    answered: bool
    @property
    def headers(self) -> list[tuple[bytes, bytes]]: ...  # only the metadata that services read
    @property
    def timeout(self) -> float | None: ...  # the client's grpc-timeout in seconds
    @property
    def queued_bytes(self) -> int: ...  # bytes of replies that have not left the session
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

def unpack(limits: Limits, budget: int) -> list[Request]: ...
def expire(limits: Limits, now: float) -> list[Request]: ...
