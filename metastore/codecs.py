"""Compression codecs: the two built-in ones, and the look-up of plug-ins by name.

A codec (see `metastore.ports.Codec`) compresses whole byte strings. More importantly, it decompresses them under a
limit: the bytes come from networks and disks, and a few hundred bytes may claim to unpack to gigabytes. Neither library
behind the built-in codecs limits its output by itself, so each claim is checked before any memory is allocated.

Only one thread at a time may use a codec object; each thread that compresses makes its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Set
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

import snappy
import zstandard

from metastore import entrypoints
from metastore.errors import ConfigError, FormatError, one_line
from metastore.threads import is_no_fault

if TYPE_CHECKING:
    from metastore.ports import Codec
    from metastore.settings import MaintenanceTable, Options, PerformanceTable

    #: The options of codec plug-ins by the names of the codecs.
    Tables = Mapping[str, Options]

log = logging.getLogger("metastore.codecs")

GROUP = "metastore.codecs"
BUILT_IN_FLAG = 1
PLUGIN_FLAGS = range(16, 256)
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# Our own frames need no larger window (levels up to 19). RFC 8878 (3.1.1.1.2) asks every decoder to support this one.
ZSTD_WINDOW = 8 * 1024 * 1024
# A zstd block takes 4 bytes at least and gives 128 KiB at most, so one step gives 2 MiB at most over the limit.
ZSTD_STEP = 64
# The best ratio of a snappy element: a copy of 3 bytes gives 64 bytes of output.
SNAPPY_BEST = (64, 3)
#: What a codec must give back unchanged when it is loaded.
SAMPLES = (b"metastore", bytes(range(256)) * 16, bytes(5000))


class Snappy:
    """The snappy block format (google/snappy, format_description.txt): fast, about half the size for JSON."""

    CONTRACT = 1
    name = "snappy"
    flag = BUILT_IN_FLAG

    def compress(self, data: bytes) -> bytes:
        """One snappy block."""
        return bytes(snappy.compress(data))

    def decompress(self, data: bytes, max_size: int) -> bytes:
        """The content of exactly one block; FormatError if it is damaged or longer than max_size bytes."""
        size, start = snappy_size(data)
        if size > max_size:
            raise FormatError(f"snappy: {size} bytes declared, at most {max_size} allowed")
        if size * SNAPPY_BEST[1] > (len(data) - start) * SNAPPY_BEST[0]:
            raise FormatError(f"snappy: {len(data)} bytes cannot hold the {size} declared")
        try:
            return bytes(snappy.decompress(data))
        except snappy.UncompressError as error:
            raise FormatError("snappy: damaged block") from error


def snappy_size(data: bytes) -> tuple[int, int]:
    """The uncompressed size that a snappy block declares, and the position after it. FormatError if there is none."""
    size = 0
    for at, byte in enumerate(data[:5]):
        size |= (byte & 0x7F) << (7 * at)
        if byte < 0x80:
            if size > 0xFFFFFFFF:
                break
            return size, at + 1
    raise FormatError("snappy: no length")


class Zstd:
    """Zstandard frames (RFC 8878): smaller than snappy, but slower. `level` is the library's level, 1 to 19.

    The input must be exactly one frame without a dictionary: concatenated frames, skippable frames and trailing bytes
    are refused. The library's contexts are reused, which is why only one thread at a time may use an object.
    """

    CONTRACT = 1
    name = "zstd"
    flag = BUILT_IN_FLAG

    def __init__(self, level: int = 3) -> None:
        if not 1 <= level <= 19:
            raise ConfigError(f"zstd: level {level} is not between 1 and 19")
        # No checksum in the frame: entries and chunks carry their own.
        self._compressor = zstandard.ZstdCompressor(level=level, write_checksum=False, write_content_size=True)
        self._decompressor = zstandard.ZstdDecompressor()

    def compress(self, data: bytes) -> bytes:
        """One frame that declares its content's size."""
        return self._compressor.compress(data)

    def decompress(self, data: bytes, max_size: int) -> bytes:
        """The content of exactly one frame; FormatError if it is damaged or longer than max_size bytes."""
        try:
            if data[:4] != ZSTD_MAGIC:
                raise FormatError("zstd: no frame")
            frame = zstandard.get_frame_parameters(data)
            size = frame.content_size
            known = size != zstandard.CONTENTSIZE_UNKNOWN
            if known and size > max_size:
                raise FormatError(f"zstd: {size} bytes declared, at most {max_size} allowed")
            # A frame in a single segment has its content for window.
            if frame.window_size > max(ZSTD_WINDOW, size if known else 0):
                raise FormatError(f"zstd: a window of {frame.window_size} bytes")
            if frame.dict_id:
                raise FormatError("zstd: needs a dictionary")
            if not known or size == 0:
                # For a declared size of nothing the library's short way does not even look at the rest.
                return self._stream(data, max_size)
            # Stops at the declared size by itself.
            return self._decompressor.decompress(data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise FormatError("zstd: damaged frame") from error

    def _stream(self, data: bytes, max_size: int) -> bytes:
        """decompress() for a frame without a declared size, in steps of bounded output."""
        step = self._decompressor.decompressobj()
        parts: list[bytes] = []
        total = 0
        for at in range(0, len(data), ZSTD_STEP):
            if step.eof:
                raise FormatError("zstd: bytes after the frame")
            part = step.decompress(data[at : at + ZSTD_STEP])
            total += len(part)
            if total > max_size:
                raise FormatError(f"zstd: more than {max_size} bytes")
            parts.append(part)
        if not step.eof:
            raise FormatError("zstd: frame is cut short")
        if step.unused_data:
            raise FormatError("zstd: bytes after the frame")
        return b"".join(parts)


def check(codec: Codec) -> Codec:
    """Returns the codec if it keeps the rules for names and flags. Raises ConfigError otherwise."""
    for attribute in ("name", "flag", "compress", "decompress"):
        if not hasattr(codec, attribute):
            raise ConfigError(f"{type(codec).__name__} has no {attribute}, which every codec must have")
    if codec.flag == BUILT_IN_FLAG and isinstance(codec, Snappy | Zstd):
        return codec
    if not isinstance(codec.flag, int) or codec.flag not in PLUGIN_FLAGS:
        raise ConfigError(f"codec {codec.name}: flag {codec.flag!r} is not between 16 and 255")
    return codec


def _make(found: EntryPoint, options: Options) -> Codec:
    """Load and try a codec. Raises ConfigError, whose text names the entry point and its package."""
    what = f"codec {found.name!r}"
    factory = entrypoints.load(found, what)
    arguments = entrypoints.arguments(factory, f"codecs.{found.name}", options)
    try:
        codec: Codec = factory(*arguments)
    except BaseException as error:
        if is_no_fault(error):
            raise
        # Whatever a plug-in raises, its user needs the name of the plug-in beside it.
        raise ConfigError(f"{what} ({entrypoints.origin(found)}) cannot be made: {one_line(error)}") from error
    if isinstance(codec, Snappy | Zstd):
        return codec
    try:
        check(codec)
        entrypoints.check_contract(codec)
        if codec.name != found.name:
            raise ConfigError(f"has the name {codec.name!r}: it must be that of its entry point")
        try_out(codec)
    except ConfigError as error:
        raise ConfigError(f"{what} ({entrypoints.origin(found)}) {error.text}") from error
    except BaseException as error:
        if is_no_fault(error):
            raise
        raise ConfigError(f"{what} ({entrypoints.origin(found)}) cannot be used: {one_line(error)}") from error
    return codec


def try_out(codec: Codec) -> None:
    """Let a codec compress something and give it back. Raises ConfigError."""
    for sample in SAMPLES:
        call = "compress"
        try:
            small = codec.compress(sample)
            if type(small) is bytes:
                call = "decompress"
                again = codec.decompress(small, len(sample))
        except BaseException as error:
            if is_no_fault(error):
                raise
            raise ConfigError(f"is broken: {call}() raised {one_line(error)}") from error
        if type(small) is not bytes:
            raise ConfigError(f"is broken: compress() returned {type(small).__name__}, not bytes")
        if type(again) is not bytes:
            raise ConfigError(f"is broken: decompress() returned {type(again).__name__}, not bytes")
        if again != sample:
            raise ConfigError("is broken: decompress() does not give back what compress() was given")


def load(name: str, key: str = "codec", tables: Tables | None = None) -> Codec:
    """The codec of that name from the entry-point group `metastore.codecs`. `key` is the setting that names it,
    `tables` has the options of codecs.

    Raises ConfigError for an unknown name, with a list of the known ones, and for a codec that cannot be loaded.
    """
    found = entrypoints.installed(GROUP)
    if name not in found:
        raise ConfigError(f"{key}: unknown codec {name!r}; installed are: {', '.join(sorted(found)) or 'none'}")
    try:
        return _make(entrypoints.sole(found[name], f"codec {name!r}"), (tables or {}).get(name, {}))
    except ConfigError as error:
        raise error if key == "codec" else ConfigError(f"{key}: {error.text}") from error


def for_proposals(table: PerformanceTable, tables: Tables | None = None) -> Codec | None:
    """The codec that the configuration names for the log's entries, None if they are not compressed. ConfigError."""
    if not table.enable_compression:
        return None
    return load(table.compression_codec, "performance.compression_codec", tables)


def for_snapshots(table: MaintenanceTable, tables: Tables | None = None) -> Codec | None:
    """The codec that the configuration names for snapshots, None if they are not compressed. ConfigError."""
    if not table.enable_snapshot_compression:
        return None
    return load(table.snapshot_compression_codec, "maintenance.snapshot_compression_codec", tables)


def load_all(tables: Tables | None = None, configured: Set[str] = frozenset()) -> list[Codec]:
    """All installed codecs in the order of their names: a node reads with them whatever its log may hold.

    One that cannot be loaded is left out, with a warning: most likely nothing here was written by it, and if something
    was, that is said where it is read. Of several that want the same flag none can be used. Raises ConfigError for
    options of a codec that is not installed, and where one of the `configured` codecs shares its flag.
    """
    found, tables = entrypoints.installed(GROUP), tables or {}
    for name, options in tables.items():
        if name not in found and options:
            where = next(iter(options.values())).where
            raise ConfigError(f"{where}: codecs.{name}: unknown key: no codec {name!r} is installed")
    by_flag: dict[int, list[Codec]] = {}
    for name, points in sorted(found.items()):
        try:
            codec = _make(entrypoints.sole(points, f"codec {name!r}"), tables.get(name, {}))
        except ConfigError as error:
            _warn(f"{error.text}; what it has compressed cannot be read")
            continue
        by_flag.setdefault(codec.flag, []).append(codec)
    usable = []
    for flag, codecs in by_flag.items():
        if flag != BUILT_IN_FLAG and len(codecs) > 1:
            names = " and ".join(codec.name for codec in codecs)
            if configured & {codec.name for codec in codecs}:
                raise ConfigError(f"codecs {names} both want flag {flag}")
            _warn(f"codecs {names} both want flag {flag}; what either has compressed cannot be read")
        else:
            usable += codecs
    return sorted(usable, key=lambda codec: codec.name)


_warned: set[str] = set()


def _warn(text: str) -> None:
    """Log a warning, once in a process: codecs are loaded for each snapshot again."""
    if text not in _warned:
        _warned.add(text)
        log.warning("%s", text)
