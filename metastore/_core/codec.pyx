"""The flag byte before every payload, and the codecs behind it.

Raw payloads are the common case for small batches, and they pass without touching a Python object. The bytes behind a
flag byte of 1 say which codec wrote them, so a cluster can change its codec while entries of the old one exist.
"""

import logging

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memcpy

from metastore.errors import CodecFailed, CodecMissing, ConfigError, FormatError, RequestTooLarge, one_line
from metastore.threads import is_no_fault

log = logging.getLogger("metastore.codecs")

RAW = FLAG_RAW
COMPRESSED = FLAG_COMPRESSED

cdef const char* ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


cdef class PayloadCodec:
    """Adds the flag byte to payloads and compresses them; reads such payloads back.

    Args: codec (metastore.ports.Codec, or None to compress nothing), min_size (bytes; shorter data stays raw),
    max_decoded (bytes; nothing longer is encoded or decoded), decoders (further codecs whose payloads can be read;
    snappy and zstd always can). Raises ConfigError for codecs that break the rules or claim the same flag. Only one
    thread at a time may use an object.
    """

    def __init__(self, codec, size_t min_size, size_t max_decoded, decoders=()):
        # Imported late, so only processes that use the codecs load their libraries.
        from metastore import codecs

        if max_decoded < 1:
            raise ValueError("max_decoded must be at least 1")
        self.codec = codec
        self.min_size = min_size
        self.max_decoded = max_decoded
        self._snappy = codecs.Snappy()
        self._zstd = codecs.Zstd()
        self._by_flag = {}
        for other in (*decoders, *(() if codec is None else (codec,))):
            codecs.check(other)
            if other.flag == FLAG_COMPRESSED:
                continue
            known = self._by_flag.setdefault(other.flag, other)
            if known.name != other.name:
                raise ConfigError(f"codecs {known.name} and {other.name} both want flag {other.flag}")
            self._by_flag[other.flag] = other
        self.plugins = set()
        self.use(codec)

    def use(self, codec):
        """Compress with this codec from now on (None: no compression). It must be one that this object can read."""
        self.codec = codec
        self._compress = None if codec is None else codec.compress
        self._flag = FLAG_RAW if codec is None else codec.flag

    def limited(self, size_t max_decoded):
        """Return a PayloadCodec like this one that encodes and decodes nothing longer than max_decoded bytes."""
        return PayloadCodec(self.codec, self.min_size, max_decoded, decoders=tuple(self._by_flag.values()))

    cpdef bytes encode(self, bytes data):
        """Return flag byte + data. Data is compressed if it is long enough and the result is shorter. Raises
        RequestTooLarge above max_decoded."""
        if data is None:
            raise TypeError("data must be bytes")
        return self._encode(<const uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), data)

    cdef bytes encode_view(self, const uint8_t* data, size_t n):
        return self._encode(data, n, None)

    cdef bytes _encode(self, const uint8_t* data, size_t n, bytes whole):
        """encode() of n bytes. `whole` is the bytes object that holds exactly these bytes, or None."""
        cdef bytes small
        if n > self.max_decoded:
            raise RequestTooLarge()
        if self._compress is not None and n >= self.min_size and n > 0:
            if whole is None:
                whole = PyBytes_FromStringAndSize(<const char*>data, n)
            small = self._try(whole)
            if small is not None and <size_t>PyBytes_GET_SIZE(small) < n:
                self.compressed += 1
                if self._flag != FLAG_COMPRESSED:
                    self.plugins.add((int(self._flag), self.codec.name))
                return self._flagged(self._flag, <const uint8_t*>PyBytes_AS_STRING(small), PyBytes_GET_SIZE(small), n)
        self.raw += 1
        return self._flagged(FLAG_RAW, data, n, n)

    cdef bytes _try(self, bytes whole):
        """Return what the codec makes of the data, or None if it fails; the data is then stored as it is."""
        try:
            small = self._compress(whole)
        except BaseException as error:
            if is_no_fault(error):
                raise
            text = f"raised {one_line(error)}"
        else:
            if PyBytes_CheckExact(small):
                return <bytes>small
            text = f"returned {type(small).__name__}, not bytes"
        self.failures += 1
        if self.failures == 1:
            log.warning("codec %r (flag %d): compress() %s; the data is stored as it is, and so is what comes next if "
                        "that fails too", self.codec.name, self._flag, text)
        return None

    cdef bytes _flagged(self, uint8_t flag, const uint8_t* data, size_t n, size_t before):
        cdef bytes out = PyBytes_FromStringAndSize(NULL, n + 1)
        cdef uint8_t* at = <uint8_t*>PyBytes_AS_STRING(out)
        at[0] = flag
        memcpy(at + 1, data, n)
        self.bytes_in += before
        self.bytes_out += n + 1
        return out

    cpdef bytes decode(self, object payload):
        """Return the data that encode() was given. `payload` is any bytes-like object.

        Raises FormatError for an empty payload, an unknown flag, and content that is damaged or too long.
        """
        cdef Py_buffer view
        cdef const uint8_t* out
        cdef size_t n
        cdef object owner
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            owner = self.decode_view(<const uint8_t*>view.buf, view.len, &out, &n)
            if owner is not None:
                return <bytes>owner
            return PyBytes_FromStringAndSize(<const char*>out, n)
        finally:
            PyBuffer_Release(&view)

    cdef object decode_view(self, const uint8_t* payload, size_t n, const uint8_t** out, size_t* out_n):
        cdef bytes found
        if n == 0:
            raise FormatError("payload: empty, without a flag byte")
        if payload[0] == FLAG_RAW:
            if n - 1 > self.max_decoded:
                raise FormatError(f"payload: {n - 1} bytes, at most {self.max_decoded} allowed")
            out[0] = payload + 1
            out_n[0] = n - 1
            return None
        found = self._decompress(payload, n)
        out[0] = <const uint8_t*>PyBytes_AS_STRING(found)
        out_n[0] = PyBytes_GET_SIZE(found)
        return found

    cdef bytes _decompress(self, const uint8_t* payload, size_t n):
        """Return the content of a payload that is not raw."""
        cdef object codec
        if payload[0] == FLAG_COMPRESSED:
            codec = self._zstd if n >= 5 and memcmp(payload + 1, ZSTD_MAGIC, 4) == 0 else self._snappy
        else:
            codec = self._by_flag.get(payload[0])
            if codec is None:
                if payload[0] < FLAG_PLUGIN:
                    raise FormatError(f"payload: unknown flag byte {payload[0]}")
                raise CodecMissing(f"payload: it needs the codec with flag {payload[0]} (not installed)", payload[0])
            self.plugins.add((int(payload[0]), codec.name))
        try:
            found = codec.decompress(PyBytes_FromStringAndSize(<const char*>payload + 1, n - 1), self.max_decoded)
        except FormatError:
            raise
        except BaseException as error:
            if is_no_fault(error):
                raise
            why = f"raised {one_line(error)}"
            raise CodecFailed(f"codec {codec.name!r} (flag {payload[0]}): decompress() {why}") from error
        if not PyBytes_CheckExact(found):
            why = f"returned {type(found).__name__}, not bytes"
        elif <size_t>PyBytes_GET_SIZE(found) > self.max_decoded:
            why = f"returned {PyBytes_GET_SIZE(found)} bytes, at most {self.max_decoded} were allowed"
        else:
            return <bytes>found
        raise CodecFailed(f"codec {codec.name!r} (flag {payload[0]}): decompress() {why}")
