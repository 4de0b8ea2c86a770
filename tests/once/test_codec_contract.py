"""The contract of codecs: the built-in ones and one of zlib keep it, and it finds each of many broken codecs."""

from __future__ import annotations

import threading
import zlib
from typing import Any

import pytest

from metastore.codecs import Snappy, Zstd
from metastore.errors import FormatError
from metastore.ports import Codec
from metastore.testing.codec_contract import CodecContract

pytestmark = pytest.mark.node_only


class ZlibCodec:
    """As docs/plugins.md has it."""

    CONTRACT = 1
    name = "zlib"
    flag = 200

    def compress(self, data: bytes) -> bytes:
        return zlib.compress(data, 1)

    def decompress(self, data: bytes, max_size: int) -> bytes:
        engine = zlib.decompressobj()
        try:
            # 0 would mean no limit.
            content = engine.decompress(data, max_size + 1)
        except zlib.error as error:
            raise FormatError(f"zlib: {error}") from error
        if len(content) > max_size:
            raise FormatError(f"zlib: more than {max_size} bytes")
        if not engine.eof or engine.unused_data:
            raise FormatError("zlib: cut short, or bytes after the end")
        return content


class TestSnappy(CodecContract):
    def make_codec(self) -> Codec:
        return Snappy()


class TestZstd(CodecContract):
    def make_codec(self) -> Codec:
        return Zstd()


class TestZlib(CodecContract):
    def make_codec(self) -> Codec:
        return ZlibCodec()


# ---- broken ones


class ChangesTheLastByte(ZlibCodec):
    """Of contents above 64 KiB."""

    def decompress(self, data: bytes, max_size: int) -> bytes:
        content = super().decompress(data, max_size)
        return content if len(content) <= 1 << 16 else content[:-1] + bytes([content[-1] ^ 1])


class CutsLarge(ZlibCodec):
    def compress(self, data: bytes) -> bytes:
        return super().compress(data[: 2 << 20])


class LosesTheEmpty(ZlibCodec):
    def compress(self, data: bytes) -> bytes:
        return super().compress(data or b"\0")


class ReturnsBytearray(ZlibCodec):
    def decompress(self, data: bytes, max_size: int) -> Any:
        return bytearray(super().decompress(data, max_size))


class CompressesToMemoryview(ZlibCodec):
    def compress(self, data: bytes) -> Any:
        return memoryview(super().compress(data))


class IgnoresMaxSize(ZlibCodec):
    def decompress(self, data: bytes, max_size: int) -> bytes:
        return super().decompress(data, 1 << 40)


class OffByOne(ZlibCodec):
    def decompress(self, data: bytes, max_size: int) -> bytes:
        return super().decompress(data, max_size + 1)


class LooksAfterwards(ZlibCodec):
    """Has it all in memory before it refuses it."""

    def decompress(self, data: bytes, max_size: int) -> bytes:
        try:
            content = zlib.decompress(data)
        except zlib.error as error:
            raise FormatError("zlib") from error
        if len(content) > max_size:
            raise FormatError("zlib: too long")
        return content


class BelievesTheClaim(ZlibCodec):
    """Takes as much memory as the first bytes claim."""

    def compress(self, data: bytes) -> bytes:
        return len(data).to_bytes(8, "little") + super().compress(data)

    def decompress(self, data: bytes, max_size: int) -> bytes:
        if len(data) < 8:
            raise FormatError("zlib: no length")
        size = int.from_bytes(data[:8], "little")
        bytearray(min(size, 1 << 40))
        content = super().decompress(data[8:], max_size)
        if len(content) != size:
            raise FormatError("zlib: the length is wrong")
        return content


class OwnException(ZlibCodec):
    def decompress(self, data: bytes, max_size: int) -> bytes:
        content = zlib.decompress(data)
        if len(content) > max_size:
            raise FormatError("zlib: too long")
        return content


class TakesWhatIsCut(ZlibCodec):
    def decompress(self, data: bytes, max_size: int) -> bytes:
        engine = zlib.decompressobj()
        try:
            content = engine.decompress(data, max_size + 1)
        except zlib.error as error:
            raise FormatError("zlib") from error
        if len(content) > max_size or engine.unused_data:
            raise FormatError("zlib: too long")
        return content


class TakesWhatFollows(ZlibCodec):
    def decompress(self, data: bytes, max_size: int) -> bytes:
        engine = zlib.decompressobj()
        try:
            content = engine.decompress(data, max_size + 1)
        except zlib.error as error:
            raise FormatError("zlib") from error
        if len(content) > max_size or not engine.eof:
            raise FormatError("zlib: too long")
        return content


class Shared(ZlibCodec):
    """All objects use one buffer."""

    buffer: list[bytes] = []

    def compress(self, data: bytes) -> bytes:
        Shared.buffer[:] = [data]
        zlib.compress(bytes(100_000))  # releases the GIL
        return super().compress(Shared.buffer[0])


class Bound(ZlibCodec):
    """Only the thread that made it may use it."""

    def __init__(self) -> None:
        self.local = threading.local()
        self.local.level = 1

    def compress(self, data: bytes) -> bytes:
        return zlib.compress(data, self.local.level)


class Remembers(ZlibCodec):
    """A refusal spoils the next call."""

    spoilt = False

    def decompress(self, data: bytes, max_size: int) -> bytes:
        if self.spoilt:
            self.spoilt = False
            return b""
        try:
            return super().decompress(data, max_size)
        except FormatError:
            self.spoilt = True
            raise


class WrongFlag(ZlibCodec):
    flag = 1


class Undeclared(ZlibCodec):
    CONTRACT = 0


class NoName(ZlibCodec):
    name = ""


BROKEN: list[tuple[type[ZlibCodec], str, str]] = [
    (ChangesTheLastByte, "test_what_was_compressed_comes_back", "65537 bytes came back otherwise"),
    (CutsLarge, "test_large_contents_come_back", "4194304 bytes came back otherwise"),
    (LosesTheEmpty, "test_what_was_compressed_comes_back", "more than 0 bytes"),
    (ReturnsBytearray, "test_what_was_compressed_comes_back", "decompress.. returned bytearray"),
    (CompressesToMemoryview, "test_what_was_compressed_comes_back", "compress.. returned memoryview"),
    (IgnoresMaxSize, "test_more_than_max_size_is_refused", "bytes with max_size"),
    (IgnoresMaxSize, "test_a_bomb_takes_no_memory", "could not be refused"),
    (OffByOne, "test_more_than_max_size_is_refused", "1 bytes with max_size = 0"),
    (LooksAfterwards, "test_a_bomb_takes_no_memory", "could not be refused"),
    (BelievesTheClaim, "test_a_bomb_takes_no_memory", "could not be refused"),
    (OwnException, "test_damage_gives_an_error_or_bytes_within_the_limit", "and not FormatError"),
    (TakesWhatIsCut, "test_content_that_is_cut_or_goes_on_is_refused", "bytes were enough"),
    (TakesWhatFollows, "test_content_that_is_cut_or_goes_on_is_refused", "bytes behind the content"),
    (Shared, "test_each_thread_uses_a_codec_of_its_own", "another thread's content|FormatError"),
    (Bound, "test_a_codec_moves_from_thread_to_thread", "in another thread"),
    (Remembers, "test_the_same_content_can_be_unpacked_again", "after a refusal"),
    (WrongFlag, "test_it_has_a_name_and_a_flag", "flags are 16 to 255"),
    (Undeclared, "test_it_has_a_name_and_a_flag", "CONTRACT = 1 says"),
    (NoName, "test_it_has_a_name_and_a_flag", "a codec has a name"),
]  # fmt: skip


def contract_of(kind: type[ZlibCodec]) -> type[CodecContract]:
    """The contract on a broken codec. The process with little memory finds the class in this module, too."""
    name = f"Of{kind.__name__}"
    members = {"make_codec": lambda self: kind(), "__module__": __name__, "__qualname__": name}
    return type(name, (CodecContract,), members)


CONTRACTS = {kind: contract_of(kind) for kind, _, _ in BROKEN}
globals().update({contract.__name__: contract for contract in CONTRACTS.values()})


@pytest.mark.parametrize(("kind", "test", "says"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_the_contract_finds(kind: type[ZlibCodec], test: str, says: str) -> None:
    with pytest.raises(Exception, match=says):
        getattr(CONTRACTS[kind](), test)()
