"""Words of the gRPC wire protocol, and the bounds of a session."""

from collections.abc import Iterable

class Limits:
    max_message: int
    max_concurrent_streams: int
    max_header_list: int
    max_buffered: int
    max_total_buffered: int
    max_output: int
    reset_burst: float
    reset_rate: float
    control_burst: float
    control_rate: float
    total_buffered: int
    def __init__(
        self,
        *,
        max_message: int = ...,
        max_concurrent_streams: int = ...,
        max_header_list: int = ...,
        max_buffered: int = ...,
        max_total_buffered: int = ...,
        max_output: int = ...,
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
