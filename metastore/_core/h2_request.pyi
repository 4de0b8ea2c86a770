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

    context: Any  # any object that the server keeps with the call
    ident: int  # request id of the operation that the call became; 0: none
    @property
    def session(self) -> Link | None: ...  # None once the stream is gone
    @property
    def stream_id(self) -> int: ...
    @property
    def method(self) -> int: ...  # id from the MethodTable
    @property
    def path(self) -> bytes: ...
    @property
    def body(
        self,
    ) -> bytes: ...  # the one message of a call that is not client-streaming, without its prefix; None once answered
    @property
    def closed(self) -> bool: ...  # the stream is gone, and answers have no effect
    @property
    def answered(self) -> bool: ...  # an answer was given, or begun and finished
    @property
    def headers(self) -> list[tuple[bytes, bytes]]: ...  # only the metadata that services read
    @property
    def timeout(self) -> float | None: ...  # the client's grpc-timeout in seconds
    @property
    def queued_bytes(self) -> int: ...  # bytes of replies that have not left the session
    def complete(self, reply: bytes) -> None: ...
    def fail(self, error: MetaStoreError) -> None: ...
    def send(self, message: bytes, framed: bool = False) -> None: ...
    def finish(self, code: int = 0, text: str = "") -> None: ...
    def start(
        self,
        on_message: Callable[[bytes], object] | None = None,
        on_end: Callable[[], object] | None = None,
        on_close: Callable[[], object] | None = None,
        on_messages: Callable[[list[bytes]], object] | None = None,
        patient: bool = False,
    ) -> None: ...
    def choke(self, on: bool) -> None: ...
    def when_closed(self, call: Callable[[], object]) -> None: ...
    def when_drained(self, call: Callable[[Request], object] | None) -> None: ...
    def reset(self, code: int = ...) -> None: ...

def unpack(limits: Limits, budget: int) -> list[Request]:
    """Unpack about `budget` bytes of compressed messages of the sessions that share `limits`. Return the calls that
    became ready."""
