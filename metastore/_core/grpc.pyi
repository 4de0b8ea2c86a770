"""Parts of the gRPC wire protocol, and the limits of a session. Sizes are bytes, times seconds, rates per second."""

from collections import deque
from collections.abc import Iterable
from typing import Any

class Limits:
    max_message: int
    max_concurrent_streams: int
    max_header_list: int
    max_buffered: int
    max_total_buffered: int
    max_output: int
    max_total_output: int
    receive_timeout: float
    receive_rate: float
    reset_burst: float
    reset_rate: float
    control_burst: float
    control_rate: float
    total_buffered: int  # request bytes of all sessions that are not answered yet
    total_output: int  # reply bytes that the sockets have not taken yet
    total_queued: int  # frames that wait to be sent
    packed: deque[Any]  # calls whose compressed messages wait for `h2_request.unpack`
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
    paths: dict[bytes, int]
    streaming: frozenset[int]
    services: frozenset[bytes]
    def __init__(self, paths: dict[bytes, int], streaming: Iterable[bytes] = ()) -> None: ...
    def unknown(self, path: bytes) -> str: ...

def percent_encode(text: str) -> bytes: ...
