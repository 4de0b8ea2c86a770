"""The contract that every codec keeps, as a test-suite for pytest; a plug-in's author runs it too:

    from metastore.testing.codec_contract import CodecContract

    class TestMyCodec(CodecContract):
        def make_codec(self):
            return MyCodec()

docs/plugins.md says what a codec owes; tests/once/test_codec_contract.py has broken codecs that the suite must find.
"""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from metastore.errors import FormatError

if TYPE_CHECKING:
    from metastore.ports import Codec

__all__ = ["CodecContract"]

LARGE = 4 << 20  # bytes: more than a chunk of a snapshot or a batch of entries has by default
BOMB = 128 << 20  # bytes that some hundred kilobytes unpack to
ROOM = 48 << 20  # bytes of address space that unpacking up to MAX_SIZE bytes may take
MAX_SIZE = 1 << 20
THREADS, TURNS = 4, 60

# This runs in a process of its own, whose memory is bounded: the test's module again.
PROGRAM = """
import importlib, operator, sys
sys.path[:] = sys.argv[3:]
found = operator.attrgetter(sys.argv[2])(importlib.import_module(sys.argv[1]))
found().defuse()
"""


def samples() -> Iterator[bytes]:
    """Yield contents of many sizes, that compress well or not at all."""
    rng = random.Random(7)
    for size in (0, 1, 2, 3, 15, 16, 100, 255, 256, 1000, 4096, 65_535, 65_536, 65_537, 200_000):
        yield bytes(size)
        yield rng.randbytes(size)
        yield (b'{"name": "node-%d", "ready": true} ' % size * (size // 30 + 1))[:size]
    yield bytes(range(256)) * 300
    yield rng.randbytes(3000) * 100


class CodecContract:
    """Subclass it at the top of a module, under a name that pytest collects, and define `make_codec`."""

    #: Seconds for which the suite waits for a thread or a process.
    patience = 120.0

    def make_codec(self) -> Codec:
        """Return a new codec. It is also called in other threads and in another process."""
        raise NotImplementedError

    def test_it_has_a_name_and_a_flag(self) -> None:
        codec = self.make_codec()
        assert type(codec.name) is str and codec.name, "a codec has a name"
        assert type(codec.flag) is int, "the flag is a number"
        if type(codec).__module__ != "metastore.codecs":
            assert codec.flag in range(16, 256), "flags are 16 to 255"
            assert getattr(codec, "CONTRACT", None) == 1, "CONTRACT = 1 says what a codec was written for"
        again = self.make_codec()
        assert (again.name, again.flag) == (codec.name, codec.flag), "name and flag never change"

    def test_what_was_compressed_comes_back(self) -> None:
        """With one object after another, and with another object than compressed it."""
        codec, other = self.make_codec(), self.make_codec()
        for data in samples():
            packed = codec.compress(data)
            assert type(packed) is bytes, f"compress() returned {type(packed).__name__} and not bytes"
            for reader in (codec, other):
                back = reader.decompress(packed, len(data))
                assert type(back) is bytes, f"decompress() returned {type(back).__name__} and not bytes"
                assert back == data, f"{len(data)} bytes came back otherwise"

    def test_large_contents_come_back(self) -> None:
        codec, rng = self.make_codec(), random.Random(8)
        for data in (
            bytes(LARGE),
            rng.randbytes(LARGE),
            rng.randbytes(1 << 16) * (LARGE >> 16),
            bytes(LARGE - 1) + b"x",
        ):
            assert codec.decompress(codec.compress(data), LARGE) == data, f"{LARGE} bytes came back otherwise"

    def test_the_same_content_can_be_unpacked_again(self) -> None:
        """A codec keeps nothing of one call for the next, whatever order they come in."""
        codec = self.make_codec()
        contents = list(samples())[:30]
        packed = [codec.compress(data) for data in contents]
        for number in random.Random(9).sample(range(len(contents)), len(contents)):
            self._refused(codec, packed[number][:-1], len(contents[number]))
            assert codec.decompress(packed[number], len(contents[number])) == contents[number], "after a refusal"
            assert codec.decompress(codec.compress(contents[number]), MAX_SIZE) == contents[number]

    def test_more_than_max_size_is_refused(self) -> None:
        codec = self.make_codec()
        for data in samples():
            packed = codec.compress(data)
            assert codec.decompress(packed, len(data) + 1) == data
            for max_size in {0, len(data) // 2, len(data) - 1} - {-1, len(data)}:
                assert self._refused(codec, packed, max_size), f"{len(data)} bytes with max_size = {max_size}"

    @staticmethod
    def _refused(codec: Codec, packed: bytes, max_size: int) -> bool:
        """Whether a codec refuses this content. Any other exception than FormatError passes through."""
        try:
            codec.decompress(packed, max_size)
        except FormatError:
            return True
        return False

    def test_content_that_is_cut_or_goes_on_is_refused(self) -> None:
        codec = self.make_codec()
        for data in (b"x", b"some words " * 50, random.Random(10).randbytes(500)):
            packed = codec.compress(data)
            for size in range(len(packed)):
                assert self._refused(codec, packed[:size], len(data)), f"{size} of {len(packed)} bytes were enough"
            for more in (b"\0", b"\xff", packed):
                assert self._refused(codec, packed + more, 10_000), "bytes behind the content are not noticed"
        assert self._refused(codec, b"", 100), "no bytes at all are not refused"

    def test_damage_gives_an_error_or_bytes_within_the_limit(self) -> None:
        """Entries and chunks carry checksums, so a codec need not notice each changed byte. But it may do nothing else
        than to refuse, or to return no more than it was allowed to."""
        codec, rng = self.make_codec(), random.Random(11)
        for data in (b"a", b"some words " * 50, rng.randbytes(300), bytes(5000)):
            packed = codec.compress(data)
            places = range(len(packed)) if len(packed) < 200 else [*range(40), *rng.sample(range(len(packed)), 160)]
            damaged = [
                packed[:at] + bytes([packed[at] ^ flip]) + packed[at + 1 :] for at in places for flip in (1, 0x80, 0xFF)
            ]
            damaged += [packed[:-1] + bytes([byte]) for byte in range(256)]
            damaged += [rng.randbytes(rng.randrange(60)) for _ in range(300)]
            for bad in damaged:
                self._bounded(codec, bad, len(data))

    @staticmethod
    def _bounded(codec: Codec, packed: bytes, max_size: int) -> None:
        """Fail unless a codec refuses this content, or returns at most `max_size` bytes."""
        try:
            back = codec.decompress(packed, max_size)
        except FormatError:
            return
        except Exception as error:
            raise AssertionError(f"decompress() of damaged bytes raises {error!r} and not FormatError") from error
        assert type(back) is bytes and len(back) <= max_size, "decompress() returned more than it was allowed to"

    # ---- bombs

    def defuse(self) -> None:
        """Unpack what is too large, with little memory. Runs in a process of its own."""
        codec = self.make_codec()
        codec.decompress(codec.compress(bytes(MAX_SIZE)), MAX_SIZE)
        bomb = codec.compress(bytes(BOMB))
        claims = [
            bytes([*head, *bomb[len(head) : 4096]]) for head in ((0xFF,) * 4, (0xFF,) * 8, (0xFE,) * 3, (0x80,) * 4)
        ]
        small = codec.compress(b"some words " * 50)
        claims += [small[:at] + b"\xff" * width + small[at + width :] for at in range(16) for width in (1, 2, 4, 8)]
        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, resource.getrlimit(resource.RLIMIT_AS)[1]))
        for max_size in (0, 1000, MAX_SIZE):
            assert self._refused(codec, bomb, max_size), f"{BOMB} bytes were unpacked with max_size = {max_size}"
            for claim in claims:
                self._bounded(codec, claim, max_size)

    def test_a_bomb_takes_no_memory(self) -> None:
        """Some bytes claim to be very many. They are refused before these many are there."""
        kind = type(self)
        argv = [sys.executable, "-c", PROGRAM, kind.__module__, kind.__qualname__, *sys.path]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=self.patience, check=False)
        assert done.returncode == 0, (
            f"with {ROOM >> 20} MiB of memory more, {BOMB >> 20} MiB could not be refused: "
            f"exit code {done.returncode}\n{done.stderr}"
        )

    # ---- threads

    def test_each_thread_uses_a_codec_of_its_own(self) -> None:
        """Objects of one class share nothing that they change."""
        start = threading.Barrier(THREADS)

        def work(number: int) -> None:
            codec, rng = self.make_codec(), random.Random(number)
            data = [rng.randbytes(rng.randrange(1, 300)) * rng.randrange(1, 60) for _ in range(6)]
            start.wait(self.patience)
            for turn in range(TURNS):
                content = data[turn % len(data)]
                assert codec.decompress(codec.compress(content), len(content)) == content, "another thread's content"

        self._in_threads([lambda number=number: work(number) for number in range(THREADS)])  # type: ignore[misc]

    def test_a_codec_moves_from_thread_to_thread(self) -> None:
        """One thread at a time uses an object, and not always the one that made it."""
        codec = self.make_codec()
        data = b"some words " * 100
        packed = codec.compress(data)
        for _ in range(3):
            self._in_threads([lambda: self._check(codec.decompress(packed, len(data)) == data)])
            self._in_threads([lambda: self._check(codec.decompress(codec.compress(data), len(data)) == data)])

    @staticmethod
    def _check(right: bool) -> None:
        assert right, "the content came back otherwise"

    def _in_threads(self, works: list[Callable[[], None]]) -> None:
        """Run functions in threads at once. Fail if one fails or does not end."""
        failures: list[BaseException] = []

        def run(work: Callable[[], None]) -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001
                failures.append(error)

        threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(self.patience)
            assert not thread.is_alive(), "a call does not return in another thread"
        if failures:
            raise AssertionError(f"in another thread: {failures[0]!r}") from failures[0]
