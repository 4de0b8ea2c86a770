from collections.abc import Iterable
from typing import Final

from typing_extensions import Buffer

from metastore.ports import Codec

RAW: Final[int]
COMPRESSED: Final[int]

class PayloadCodec:
    """Adds the flag byte to payloads and compresses them. Sizes are bytes. The constructor raises ConfigError."""

    @property
    def codec(self) -> Codec | None: ...
    @property
    def plugins(self) -> set[tuple[int, str]]: ...  # (flag byte, name) of those that wrote or read a payload here
    @property
    def min_size(self) -> int: ...  # shorter data stays raw
    @property
    def max_decoded(self) -> int: ...
    @property
    def compressed(self) -> int: ...  # payloads encoded compressed
    @property
    def raw(self) -> int: ...  # payloads encoded raw
    @property
    def failures(self) -> int: ...  # payloads that the codec failed to compress; they were encoded raw
    @property
    def bytes_in(self) -> int: ...  # before encoding
    @property
    def bytes_out(self) -> int: ...  # after encoding, flag bytes included
    def __init__(
        self, codec: Codec | None, min_size: int, max_decoded: int, decoders: Iterable[Codec] = ()
    ) -> None: ...
    def use(self, codec: Codec | None) -> None: ...
    def limited(self, max_decoded: int) -> PayloadCodec: ...
    def encode(self, data: bytes) -> bytes: ...  # raises RequestTooLarge
    def decode(self, payload: Buffer) -> bytes: ...  # raises FormatError
