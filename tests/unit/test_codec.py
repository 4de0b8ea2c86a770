"""The flag byte and the codecs: round trips, limits, damage, bombs, and plug-ins from real entry points."""

from __future__ import annotations

import random
import sys
import tracemalloc
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from metastore import codecs
from metastore._core.codec import PayloadCodec
from metastore.codecs import Snappy, Zstd
from metastore.config import Config
from metastore.errors import CodecFailed, CodecMissing, ConfigError, FormatError, RequestTooLarge
from metastore.ports import Codec

MIB = 1024 * 1024
JSON = b'{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web-%d","labels":{"app":"web"}}}' * 40
BUILT_IN: list[Codec] = [Snappy(), Zstd()]
NAMES = [codec.name for codec in BUILT_IN]
MIXED = st.lists(st.binary(max_size=30) | st.builds(bytes, st.integers(0, 3000)), max_size=6).map(b"".join)


class Reverse:
    """A codec of a plug-in that works, but is useless."""

    name = "reverse"
    flag = 16

    def compress(self, data: bytes) -> bytes:
        return data[:0:-1]

    def decompress(self, data: bytes, max_size: int) -> bytes:
        return data[::-1]


class Liar(Reverse):
    """A codec that breaks the contract: it ignores its limit, and raises anything."""

    name = "liar"
    flag = 17

    def decompress(self, data: bytes, max_size: int) -> bytes:
        if data == b"boom":
            raise KeyError("boom")
        return bytes(max_size + 1)


# The flag byte.


@pytest.mark.parametrize("codec", [None, *BUILT_IN], ids=["raw", *NAMES])
@given(data=MIXED, min_size=st.integers(0, 2000))
def test_round_trip(codec: Codec | None, data: bytes, min_size: int) -> None:
    payloads = PayloadCodec(codec, min_size, MIB)
    payload = payloads.encode(data)
    assert payloads.decode(payload) == data
    assert payloads.decode(memoryview(bytearray(payload))) == data
    assert payload[0] in (0, 1) and len(payload) <= len(data) + 1
    if codec is None or len(data) < min_size:
        assert payload == b"\x00" + data


@pytest.mark.parametrize("codec", BUILT_IN, ids=NAMES)
def test_compresses_from_the_minimum_on_and_only_where_it_pays(codec: Codec) -> None:
    payloads = PayloadCodec(codec, 1000, MIB)
    assert payloads.encode(bytes(999)) == bytes(1000)
    small = payloads.encode(bytes(1000))
    assert small[0] == 1 and len(small) < 100
    noise = random.Random(1).randbytes(5000)
    assert payloads.encode(noise) == b"\x00" + noise
    assert (payloads.compressed, payloads.raw) == (1, 2)
    assert (payloads.bytes_in, payloads.bytes_out) == (6999, 1000 + len(small) + 5001)


def test_known_bytes_and_empty_data() -> None:
    payloads = PayloadCodec(Snappy(), 0, MIB)
    assert payloads.encode(b"") == b"\x00" and payloads.decode(b"\x00") == b""
    assert payloads.encode(b"abc") == b"\x00abc"
    assert payloads.encode(b"a" * 100) == b"\x01" + Snappy().compress(b"a" * 100)


def test_a_cluster_can_change_its_codec() -> None:
    old = [PayloadCodec(codec, 0, MIB).encode(JSON) for codec in (None, *BUILT_IN)]
    assert [payload[0] for payload in old] == [0, 1, 1]
    for codec in (None, *BUILT_IN):
        assert [PayloadCodec(codec, 0, MIB).decode(payload) for payload in old] == [JSON] * 3


def test_no_snappy_block_starts_like_a_zstd_frame() -> None:
    """The magic number would declare 40 bytes and then a copy with nothing before it to copy, so no block begins with
    it."""
    for tail in (b"", bytes(50), b"\xff" * 50, bytes(range(60))):
        with pytest.raises(FormatError):
            Snappy().decompress(codecs.ZSTD_MAGIC + tail, MIB)


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"", "empty"),
        (b"\x01", "no length"),
        (b"\x02x", "unknown flag byte 2"),
        (b"\x0fx", "unknown flag byte 15"),
        (b"\x10x", r"it needs the codec with flag 16 \(not installed\)"),
        (b"\xffx", r"it needs the codec with flag 255 \(not installed\)"),
        (b"\x01\xff\xff\xff", "no length"),
        (b"\x01\xff\xff\xff\xff\x7f", "no length"),
        (b"\x01" + codecs.ZSTD_MAGIC, "zstd"),
        (bytes(1002), "1001 bytes, at most 1000"),
    ],
)
def test_refused_payloads(payload: bytes, text: str) -> None:
    with pytest.raises(FormatError, match=text):
        PayloadCodec(None, 0, 1000).decode(payload)


def test_limits_of_what_is_decoded_and_encoded() -> None:
    for codec in BUILT_IN:
        payload = PayloadCodec(codec, 0, MIB).encode(bytes(1001))
        assert PayloadCodec(None, 0, 1001).decode(payload) == bytes(1001)
        with pytest.raises(FormatError, match="1001 bytes declared, at most 1000"):
            PayloadCodec(None, 0, 1000).decode(payload)
        # Content that could not be read again is not written.
        with pytest.raises(RequestTooLarge):
            PayloadCodec(codec, 0, 1000).encode(bytes(1001))
    assert PayloadCodec(None, 0, 1000).decode(bytes(1001)) == bytes(1000)
    with pytest.raises(ValueError, match="max_decoded"):
        PayloadCodec(None, 0, 0)


# Damage.


@pytest.mark.parametrize("codec", BUILT_IN, ids=NAMES)
def test_every_cut_and_every_trailing_byte_is_refused(codec: Codec) -> None:
    whole = codec.compress(JSON)
    assert codec.decompress(whole, len(JSON)) == JSON
    for size in range(len(whole)):
        with pytest.raises(FormatError):
            codec.decompress(whole[:size], MIB)
    for tail in (b"\x00", b"junk", whole, b"\x50\x2a\x4d\x18\x04\0\0\0abcd"):
        with pytest.raises(FormatError):
            codec.decompress(whole + tail, MIB)
    with pytest.raises(FormatError):
        codec.decompress(codec.compress(b"") + b"xx", MIB)


@pytest.mark.parametrize("codec", BUILT_IN, ids=NAMES)
def test_damaged_bytes_give_an_error_or_bounded_bytes(codec: Codec) -> None:
    """The sum of the entry or chunk finds damage. A codec only must not crash, hang, or exceed its limit."""
    whole, limit = codec.compress(JSON), 2 * len(JSON)
    rng = random.Random(3)
    for at in range(len(whole)):
        for _ in range(8):
            damaged = bytearray(whole)
            damaged[at] = rng.randrange(256)
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            try:
                assert len(codec.decompress(bytes(damaged), limit)) <= limit
            except FormatError:
                pass
    for _ in range(2000):
        noise = (codecs.ZSTD_MAGIC if codec.name == "zstd" else b"") + rng.randbytes(rng.randrange(40))
        try:
            assert len(codec.decompress(noise, 1000)) <= 1000
        except FormatError:
            pass


# Bombs: few bytes that claim or unpack to much.


def peak_of(codec: Codec, data: bytes, limit: int) -> int:
    """Return the most bytes that Python held while it refused the data."""
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            codec.decompress(data, limit)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def streamed(data: bytes) -> bytes:
    """Return a zstd frame that does not declare the size of its content."""
    step = zstandard.ZstdCompressor(level=3, write_content_size=False).compressobj()
    return step.compress(data) + step.flush()


def test_a_zstd_bomb_that_declares_its_size() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(64 * MIB))
    assert len(bomb) < 8000
    assert peak_of(Zstd(), bomb, MIB) < MIB


def test_a_zstd_bomb_that_declares_nothing() -> None:
    bomb = streamed(bytes(64 * MIB))
    assert len(bomb) < 16000
    assert peak_of(Zstd(), bomb, MIB) < 8 * MIB


def test_a_zstd_frame_that_declares_more_than_it_has() -> None:
    frame = bytearray(Zstd().compress(bytes(100)))
    assert frame[4] == 0x20 and frame[5] == 100  # one segment, its size in one byte
    frame[5] = 101
    with pytest.raises(FormatError, match="damaged"):
        Zstd().decompress(bytes(frame), MIB)
    frame[5] = 99
    with pytest.raises(FormatError):
        Zstd().decompress(bytes(frame), MIB)


def test_a_snappy_block_that_declares_gigabytes() -> None:
    assert peak_of(Snappy(), b"\xff\xff\xff\xff\x0f" + bytes(200), MIB) < MIB
    # The claim is within the limit, but more than the few bytes can hold. It is refused before anything is allocated.
    with pytest.raises(FormatError, match="206 bytes cannot hold the 67108864 declared"):
        Snappy().decompress(b"\x80\x80\x80\x20" + b"\x00a" + bytes(200), 64 * MIB)


def test_snappys_best_case_is_below_the_bound() -> None:
    """The check of the claim against the length refuses no honest block."""
    for size in (1, 11, 64, 65, 1000, 65536, 65537, MIB):
        for data in (bytes(size), b"ab" * (size // 2), b"0123456789abcdef" * (size // 16)):
            assert Snappy().decompress(Snappy().compress(data), MIB) == data


# Frames that we do not write, but others may write.


@pytest.mark.parametrize("size", [0, 1, 100, 300_000, 2 * MIB])
def test_zstd_without_a_declared_size(size: int) -> None:
    data = random.Random(size).randbytes(size // 2) + bytes(size - size // 2)
    frame = streamed(data)
    assert zstandard.get_frame_parameters(frame).content_size == zstandard.CONTENTSIZE_UNKNOWN
    assert Zstd().decompress(frame, size) == data
    for wrong in (frame + b"x", frame + frame, frame + bytes(200)):
        with pytest.raises(FormatError, match="bytes after the frame"):
            Zstd().decompress(wrong, 4 * MIB)
    for wrong in (frame[:-1], frame[: len(frame) // 2]):
        with pytest.raises(FormatError):
            Zstd().decompress(wrong, 4 * MIB)
    if size:
        with pytest.raises(FormatError, match=f"more than {size - 1} bytes"):
            Zstd().decompress(frame, size - 1)


def test_zstd_window_and_dictionary() -> None:
    wide = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    step = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    frame = step.compress(bytes(1000)) + step.flush()
    assert zstandard.get_frame_parameters(frame).window_size == 128 * MIB
    with pytest.raises(FormatError, match="a window of 134217728 bytes"):
        Zstd().decompress(frame, MIB)
    book = zstandard.train_dictionary(1000, [b"sample %d of the same kind" % n for n in range(500)])
    with pytest.raises(FormatError, match="dictionary"):
        Zstd().decompress(zstandard.ZstdCompressor(dict_data=book).compress(b"sample 7 of the same kind"), MIB)


def test_zstd_checks_a_checksum_if_there_is_one() -> None:
    frame = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(JSON))
    assert Zstd().decompress(bytes(frame), MIB) == JSON
    frame[-1] ^= 1
    with pytest.raises(FormatError, match="damaged"):
        Zstd().decompress(bytes(frame), MIB)


def test_zstd_levels() -> None:
    for level in (1, 3, 19):
        codec = Zstd(level)
        for _ in range(3):  # the contexts are used again
            assert codec.decompress(codec.compress(JSON), len(JSON)) == JSON
    for level in (0, 20):
        with pytest.raises(ConfigError, match="between 1 and 19"):
            Zstd(level)


# Plug-ins.


def test_a_plug_in_has_a_flag_of_its_own() -> None:
    payloads = PayloadCodec(Reverse(), 0, 1000)
    assert payloads.encode(b"abc") == b"\x10cb"
    assert payloads.decode(b"\x10cba") == b"abc"
    assert PayloadCodec(None, 0, 1000, [Reverse(), Liar()]).decode(b"\x10cba") == b"abc"
    with pytest.raises(CodecMissing, match="needs the codec with flag 16") as missing:
        PayloadCodec(Snappy(), 0, 1000).decode(b"\x10cba")
    assert (missing.value.flag, missing.value.exit_code) == (16, 14)


def test_a_plug_in_that_breaks_its_contract_harms_nobody() -> None:
    payloads = PayloadCodec(None, 0, 1000, [Liar()])
    with pytest.raises(
        CodecFailed, match=r"codec 'liar' \(flag 17\): .* returned 1001 bytes, at most 1000 were allowed"
    ):
        payloads.decode(b"\x11abc")
    with pytest.raises(CodecFailed, match="raised KeyError: 'boom'"):
        payloads.decode(b"\x11boom")


@pytest.mark.parametrize("flag", [0, 1, 2, 15, 256, "16"])
def test_flags_a_plug_in_may_not_take(flag: object) -> None:
    codec = Reverse()
    codec.flag = flag  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="is not between 16 and 255"):
        PayloadCodec(codec, 0, 1000)


def test_two_codecs_on_one_flag() -> None:
    other = Liar()
    other.flag = 16
    with pytest.raises(ConfigError, match="both want flag 16"):
        PayloadCodec(Reverse(), 0, 1000, [other])
    PayloadCodec(Reverse(), 0, 1000, [Reverse()])
    with pytest.raises(ConfigError, match="has no name"):
        PayloadCodec(object(), 0, 1000)  # type: ignore[arg-type]


def test_built_in_codecs_are_found_by_name() -> None:
    assert isinstance(codecs.load("snappy"), Snappy) and isinstance(codecs.load("zstd"), Zstd)
    assert {"snappy", "zstd"} <= {codec.name for codec in codecs.load_all()}
    with pytest.raises(ConfigError, match=r"unknown codec 'lz5'; installed are: .*snappy, .*zstd"):
        codecs.load("lz5")


def test_an_unknown_codec_names_its_key() -> None:
    wrong = Config(performance={"compression_codec": "lz5"}, maintenance={"snapshot_compression_codec": "lz5"})
    with pytest.raises(ConfigError, match=r"^performance\.compression_codec: unknown codec 'lz5'"):
        codecs.for_proposals(wrong.performance)
    with pytest.raises(ConfigError, match=r"^maintenance\.snapshot_compression_codec: unknown codec 'lz5'"):
        codecs.for_snapshots(wrong.maintenance)
    off = Config(
        performance={"compression_codec": "lz5", "enable_compression": False},
        maintenance={"snapshot_compression_codec": "lz5", "enable_snapshot_compression": False},
    )
    assert codecs.for_proposals(off.performance) is codecs.for_snapshots(off.maintenance) is None


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, **entries: str) -> None:
    """Make a distribution with entry points, as an installer would leave it."""
    info = folder / "plug_in-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug-in\nVersion: 1.0\n")
    lines = [f"{name} = {value}\n" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("[metastore.codecs]\n" + "".join(lines))
    (folder / "plug_in_codecs.py").write_text(
        "import zlib\n"
        "class Same:\n"
        "    CONTRACT, name, flag = 1, 'same', 200\n"
        "    def compress(self, data): return zlib.compress(data)\n"
        "    def decompress(self, data, max_size): return zlib.decompress(data)\n"
        "class Clash(Same):\n"
        "    name = 'clash'\n"
        "class Early(Same):\n"
        "    name, flag = 'early', 3\n"
        "class Later(Same):\n"
        "    CONTRACT, name = 2, 'later'\n"
        "class Silent(Same):\n"
        "    CONTRACT, name = None, 'silent'\n"
        "class Other(Same):\n"
        "    name = 'another'\n"
        "class Text(Same):\n"
        "    name = 'text'\n"
        "    def compress(self, data): return str(data)\n"
        "class View(Same):\n"
        "    name = 'view'\n"
        "    def decompress(self, data, max_size): return memoryview(zlib.decompress(data))\n"
        "class Loser(Same):\n"
        "    name = 'loser'\n"
        "    def decompress(self, data, max_size): return zlib.decompress(data)[:-1]\n"
        "class Raiser(Same):\n"
        "    name = 'raiser'\n"
        "    def compress(self, data): raise OSError('no\\nluck')\n"
        "class Poor:\n"
        "    CONTRACT, name, flag = 1, 'poor', 200\n"
        "    def compress(self, data): return data\n"
        "def refuses(): raise RuntimeError('not today')\n"
        "def leaves(): raise SystemExit(0)\n"
        "class Ender(Same):\n"
        "    name = 'ender'\n"
        "    def decompress(self, data, max_size): raise SystemExit(0)\n"
        "class Veiled(Same):\n"
        "    name = 'veiled'\n"
        "    @property\n"
        "    def flag(self): raise SystemExit(0)\n"
        "class Chosen(Same):\n"
        "    OPTIONS = {'level': 6, 'note': '', 'window': '1MiB'}\n"
        "    name, flag = 'chosen', 201\n"
        "    def __init__(self, options): self.options = options\n"
        "number = 5\n"
    )
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.delitem(sys.modules, "plug_in_codecs", raising=False)


def test_an_installed_plug_in_is_found_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, same="plug_in_codecs:Same")
    payloads = PayloadCodec(codecs.load("same"), 0, 1000)
    small = payloads.encode(bytes(100))
    assert small == b"\xc8" + zlib.compress(bytes(100)) and payloads.decode(small) == bytes(100)
    assert PayloadCodec(None, 0, 1000, codecs.load_all()).decode(small) == bytes(100)
    with pytest.raises(ConfigError, match=r"installed are: .*same, snappy, zstd"):
        codecs.load("other")


@pytest.mark.parametrize(
    ("name", "where", "why"),
    [
        ("gone", "plug_in_codecs:Gone", "cannot be loaded: AttributeError: module 'plug_in_codecs' has no attribute"),
        ("gone", "no_such_module:X", "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ("number", "plug_in_codecs:number", "cannot be loaded: it is no class and no function"),
        ("refuses", "plug_in_codecs:refuses", "cannot be made: RuntimeError: not today"),
        ("leaves", "plug_in_codecs:leaves", "cannot be made: SystemExit: 0"),
        ("ender", "plug_in_codecs:Ender", "is broken: decompress() raised SystemExit: 0"),
        ("veiled", "plug_in_codecs:Veiled", "cannot be used: SystemExit: 0"),
        ("later", "plug_in_codecs:Later", "keeps contract 2, and this MetaStore needs contract 1"),
        ("silent", "plug_in_codecs:Silent", "does not declare which contract it keeps: it needs CONTRACT = 1"),
        ("poor", "plug_in_codecs:Poor", "Poor has no decompress, which every codec must have"),
        ("early", "plug_in_codecs:Early", "codec early: flag 3 is not between 16 and 255"),
        ("other", "plug_in_codecs:Other", "has the name 'another': it must be that of its entry point"),
        ("text", "plug_in_codecs:Text", "is broken: compress() returned str, not bytes"),
        ("view", "plug_in_codecs:View", "is broken: decompress() returned memoryview, not bytes"),
        ("loser", "plug_in_codecs:Loser", "is broken: decompress() does not give back what compress() was given"),
        ("raiser", "plug_in_codecs:Raiser", "is broken: compress() raised OSError: no luck"),
    ],
)
def test_a_plug_in_that_cannot_be_used_is_named(
    name: str, where: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It stops a start only if it is configured. Else there is a warning, which is said once."""
    install(tmp_path, monkeypatch, **{name: where})
    monkeypatch.setattr(codecs, "_warned", set())
    prefix = f"codec {name!r} ({where} of plug-in 1.0) "
    table = Config(performance={"compression_codec": name}).performance
    with pytest.raises(ConfigError) as failure:
        codecs.for_proposals(table)
    assert failure.value.text.startswith(f"performance.compression_codec: {prefix}{why}")
    assert "\n" not in failure.value.text
    assert [codec.name for codec in codecs.load_all()] == [codec.name for codec in codecs.load_all()] == NAMES
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(prefix + why) and warning.endswith("; what it has compressed cannot be read")


def test_of_codecs_with_one_flag_none_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(tmp_path, monkeypatch, clash="plug_in_codecs:Clash", same="plug_in_codecs:Same")
    monkeypatch.setattr(codecs, "_warned", set())
    assert [codec.name for codec in codecs.load_all()] == NAMES
    assert "codecs clash and same both want flag 200" in caplog.text
    assert [codec.name for codec in codecs.load_all(configured={"zstd"})] == NAMES
    with pytest.raises(ConfigError, match=r"^codecs clash and same both want flag 200$"):
        codecs.load_all(configured={"same"})
    with pytest.raises(ConfigError, match=r"codecs clash and same|codecs same and clash"):
        PayloadCodec(codecs.load("same"), 0, 1000, [codecs.load("clash")])


def test_two_packages_with_one_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(tmp_path, monkeypatch, same="plug_in_codecs:Same")
    monkeypatch.setattr(codecs, "_warned", set())
    info = tmp_path / "twin-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: twin\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[metastore.codecs]\nsame = plug_in_codecs:Same\n")
    text = "codec 'same' is installed 2 times: plug_in_codecs:Same of plug-in 1.0, plug_in_codecs:Same of twin 2.0"
    with pytest.raises(ConfigError) as failure:
        codecs.load("same")
    assert failure.value.text == text
    assert [codec.name for codec in codecs.load_all()] == NAMES and text in caplog.text


def test_options_reach_the_factory_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, chosen="plug_in_codecs:Chosen", same="plug_in_codecs:Same")
    monkeypatch.setattr(codecs, "_warned", set())
    toml = '[performance]\ncompression_codec = "chosen"\n[codecs.chosen]\nlevel = 9\n'
    config = Config.load(toml, overrides=["codecs.chosen.note=5", "codecs.chosen.window=2MiB"])
    codec = codecs.for_proposals(config.performance, config.plugins("codecs"))
    assert codec.options == {"level": 9, "note": "5", "window": "2MiB"}  # type: ignore[union-attr]
    for overrides, why in (
        (
            ["codecs.chosen.levle=1"],
            "--set codecs.chosen.levle=1: codecs.chosen.levle: unknown key; did you mean 'level'",
        ),
        (["codecs.chosen.level=true"], "codecs.chosen.level: expected an integer or a size, found a boolean"),
    ):
        wrong = Config.load(toml, overrides=overrides)
        with pytest.raises(ConfigError) as failure:
            codecs.for_proposals(wrong.performance, wrong.plugins("codecs"))
        assert why in failure.value.text
    with pytest.raises(ConfigError, match=r"codecs\.same\.a: unknown key: 'same' takes no options"):
        codecs.load("same", tables=Config(codecs={"same": {"a": 1}}).plugins("codecs"))
    with pytest.raises(ConfigError, match=r"codecs\.gone: unknown key: no codec 'gone' is installed"):
        codecs.load_all(Config(codecs={"gone": {"a": 1}}).plugins("codecs"))


class Moody(Reverse):
    """A codec that works at first, when it is tried out."""

    name, flag, answer = "moody", 18, None

    def compress(self, data: bytes) -> bytes:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return data[:1] if self.answer is None else self.answer

    def decompress(self, data: bytes, max_size: int) -> bytes:
        return self.compress(data)


@pytest.mark.parametrize("answer", [KeyError("k"), SystemExit("k"), "text", bytearray(3), memoryview(b"abc")])
def test_what_a_codec_does_wrong_later_harms_nobody(answer: object, caplog: pytest.LogCaptureFixture) -> None:
    codec = Moody()
    payloads = PayloadCodec(codec, 0, 1000)
    good = payloads.encode(JSON[:900])
    codec.answer = answer  # type: ignore[assignment]
    assert payloads.encode(JSON[:900]) == payloads.encode(JSON[:900]) == b"\0" + JSON[:900]
    assert (payloads.failures, payloads.raw, payloads.compressed) == (2, 2, 1)
    (line,) = [record.getMessage() for record in caplog.records]
    said = f"returned {type(answer).__name__}, not bytes"
    if isinstance(answer, BaseException):
        said = f"raised {type(answer).__name__}: {answer}"
    assert line.startswith(f"codec 'moody' (flag 18): compress() {said}")
    with pytest.raises(CodecFailed, match=rf"^codec 'moody' \(flag 18\): decompress\(\) {said}$") as failure:
        payloads.decode(good)
    assert failure.value.exit_code == 15
