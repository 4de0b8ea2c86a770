"""Parts of the gRPC wire protocol, and the limits of a session. Sizes are bytes, times seconds, rates per second."""

from collections import deque
from collections.abc import Iterable
from typing import Any

class Limits:
    """Limits of the sessions that share this object, and the sums that the sessions keep in it."""

    total_buffered: int  # request bytes of all sessions that are not answered yet
    total_output: int  # reply bytes that the sockets have not taken yet
    total_queued: int  # frames that wait to be sent
    rounds: int  # the owner counts here how often it answered those who write
    @property
    def heard(self) -> int: ...  # requests, or bundles of them, that connections sent in one go
    @property
    def returned(self) -> int: ...  # those of them that came within a round of an answer on that connection
    @property
    def timed(self) -> bool: ...  # some request is incomplete or has a timeout
    @property
    def max_message(self) -> int: ...  # bytes of one gRPC message
    @property
    def max_concurrent_streams(self) -> int: ...
    @property
    def max_header_list(self) -> int: ...  # bytes of a request's headers, as RFC 9113 6.5.2 counts them
    @property
    def max_buffered(self) -> int: ...  # bytes of unanswered requests of one session
    @property
    def max_total_buffered(self) -> int: ...  # the same for all sessions together
    @property
    def max_output(self) -> int: ...  # above this many reply bytes a session delivers no further requests
    @property
    def max_total_output(self) -> int: ...  # above this many reply bytes of all sessions reads wait
    @property
    def max_queued(self) -> int: ...  # frames that may wait on one session
    @property
    def receive_timeout(self) -> float: ...  # seconds in which a request must be complete
    @property
    def receive_rate(self) -> float: ...  # bytes that prolong this time by one second
    @property
    def reset_burst(self) -> float: ...  # requests that a client may reset at once
    @property
    def reset_rate(self) -> float: ...  # further ones per second
    @property
    def control_burst(self) -> float: ...  # frames without use to the client that may come at once
    @property
    def control_rate(self) -> float: ...  # further ones per second
    @property
    def packed(self) -> deque[Any]: ...  # calls whose compressed messages wait for `h2_request.unpack`
    def __init__(
        self,
        *,
        max_message: int = ...,
        max_concurrent_streams: int = ...,
        max_header_list: int = ...,
        max_buffered: int = ...,
        max_total_buffered: int = ...,
        max_output: int = ...,
        max_total_output: int = ...,
        receive_timeout: float = ...,
        receive_rate: float = ...,
        reset_burst: float = ...,
        reset_rate: float = ...,
        control_burst: float = ...,
        control_rate: float = ...,
    ) -> None: ...

class MethodTable:
    """Maps paths to small ints. The constructor raises ValueError for a path that is no gRPC path, or a streaming path
    without an id."""

    @property
    def paths(self) -> dict[bytes, int]: ...
    @property
    def streaming(self) -> frozenset[int]: ...  # ids of the methods that get their messages one by one
    @property
    def services(self) -> frozenset[bytes]: ...  # names of the services
    def __init__(self, paths: dict[bytes, int], streaming: Iterable[bytes] = ()) -> None: ...
    def unknown(self, path: bytes) -> str: ...  # text of the UNIMPLEMENTED error

def percent_encode(text: str) -> bytes: ...  # for the header grpc-message
