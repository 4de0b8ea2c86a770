"""Chunks of a byte stream; layout: FORMATS.md, "Chunk"."""

from collections.abc import Callable
from typing import Final

from typing_extensions import Buffer

from metastore._core.codec import PayloadCodec

HEADER: Final[int]  # bytes
MAX_CHUNK: Final[int]  # bytes

class Chunk:
    """Header of a chunk."""

    @property
    def stream(self) -> int: ...
    @property
    def number(self) -> int: ...  # from 0
    @property
    def offset(self) -> int: ...  # in the stream, bytes
    @property
    def size(self) -> int: ...  # bytes of the stream in it
    @property
    def last(self) -> bool: ...

class ChunkSplitter:
    """Cuts a stream into chunks and passes their images to `sink`."""

    @property
    def stream(self) -> int: ...
    @property
    def chunk_size(self) -> int: ...  # bytes before compression
    @property
    def chunks(self) -> int: ...  # images created
    @property
    def bytes_in(self) -> int: ...  # bytes of the stream in these
    @property
    def bytes_out(self) -> int: ...  # bytes of these images
    @property
    def finished(self) -> bool: ...
    def __init__(self, sink: Callable[[bytes], object], stream: int, chunk_size: int, codec: PayloadCodec) -> None: ...
    def write(self, data: Buffer) -> None: ...  # raises ValueError after finish()
    def finish(self) -> None: ...

class ChunkJoiner:
    """Checks the images of a stream one by one, in order."""

    @property
    def stream(self) -> int: ...
    @property
    def max_chunk(self) -> int: ...  # most bytes of the stream in a chunk
    @property
    def expected(self) -> int: ...  # number of the next chunk
    @property
    def offset(self) -> int: ...  # bytes joined so far
    @property
    def finished(self) -> bool: ...
    def __init__(
        self, stream: int, max_chunk: int, codec: PayloadCodec, *, expected: int = 0, offset: int = 0
    ) -> None: ...
    def feed(self, image: Buffer) -> bytes: ...  # bytes of the stream in it; raises FormatError
    def finish(self) -> int: ...  # size of the stream in bytes; raises FormatError

def image_size(header: Buffer, max_chunk: int) -> int: ...  # bytes; raises FormatError
def check_chunk(image: Buffer, max_chunk: int) -> Chunk: ...  # raises FormatError
def make_chunk(stream: int, number: int, offset: int, data: bytes, last: bool, codec: PayloadCodec) -> bytes: ...
