"""Frames between members; layout: FORMATS.md, Peer streams. All sizes are bytes."""

from typing import Final

from typing_extensions import Buffer

from metastore._core.raft_types import Message
from metastore.errors import MetaStoreError

HEADER: Final[int]
MAX_FRAME: Final[int]
REFUSALS: Final[tuple[type[MetaStoreError], ...]]
WITHDRAWN: int  # code of a refusal by which a member withdraws its own operations

class Forward:
    """Operations for the leader."""

    def __init__(self, frame: bytes) -> None: ...
    @property
    def frame(self) -> bytes: ...  # a batch of raw operations, see batch.unframe

class Refusal:
    """Forwarded operations that were not logged."""

    def __init__(self, code: int, ids: list[int]) -> None: ...
    @property
    def code(self) -> int: ...  # index into REFUSALS
    @property
    def ids(self) -> list[int]: ...  # request ids

class Blob:
    def __init__(self, tag: int, data: bytes) -> None: ...
    @property
    def tag(self) -> int: ...  # 0 to 255
    @property
    def data(self) -> bytes: ...

class Outbox:
    """Frames that wait to be sent on one stream. The add methods return whether the frame was taken."""

    def __init__(self, max_bytes: int = ..., max_frame: int = ...) -> None: ...
    @property
    def size(self) -> int: ...  # bytes that wait
    @property
    def max_bytes(self) -> int: ...
    @property
    def max_frame(self) -> int: ...
    @property
    def frames(self) -> int: ...  # frames taken since the beginning
    @property
    def dropped(self) -> int: ...  # frames refused since the beginning
    @property
    def sent_bytes(self) -> int: ...
    def add(self, message: Message) -> bool: ...
    def add_forward(self, frame: bytes) -> bool: ...
    def add_refusal(self, code: int, ids: list[int]) -> bool: ...  # raises ValueError
    def add_blob(self, tag: int, data: Buffer) -> bool: ...  # raises ValueError
    def pieces(self, max_bytes: int = ...) -> list[bytes | memoryview]: ...
    def sent(self, n: int) -> int: ...  # n bytes of `pieces` were written
    def clear(self) -> None: ...

class FrameReader:
    """Extracts frames from a stream of bytes. from_ and to: ids that messages must have; 0: any."""

    def __init__(self, max_frame: int = ..., from_: int = ..., to: int = ...) -> None: ...
    @property
    def max_frame(self) -> int: ...
    @property
    def from_(self) -> int: ...
    @property
    def to(self) -> int: ...
    @property
    def frames(self) -> int: ...  # frames read since the beginning
    @property
    def waiting(self) -> int: ...  # bytes of memory held for an incomplete frame
    def feed(self, buffer: Buffer, n: int) -> list[Message | Forward | Refusal | Blob]:
        """First n bytes. Raises FormatError."""
