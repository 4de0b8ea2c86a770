"""The flag byte before a payload and the codecs behind it. Layout: FORMATS.md, "Flag byte"."""

from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    FLAG_RAW = 0
    FLAG_COMPRESSED = 1   # snappy, or zstd if it starts with zstd's magic number
    FLAG_PLUGIN = 16      # the first flag a codec plug-in may take


cdef class PayloadCodec:
    cdef readonly object codec            # None: no compression
    cdef readonly set plugins             # (flag byte, name) of the plug-ins that wrote or read a payload here
    cdef readonly size_t min_size         # bytes
    cdef readonly size_t max_decoded      # bytes
    cdef readonly uint64_t compressed     # payloads that were encoded compressed
    cdef readonly uint64_t raw            # payloads that were encoded raw
    cdef readonly uint64_t bytes_in       # bytes before encoding
    cdef readonly uint64_t bytes_out      # bytes after encoding, flag bytes included
    cdef readonly uint64_t failures       # payloads that the codec failed to compress
    cdef object _compress
    cdef uint8_t _flag
    cdef dict _by_flag
    cdef object _zstd
    cdef object _snappy

    # Returns flag byte + (raw | compressed). Raises RequestTooLarge if data is longer than max_decoded.
    cpdef bytes encode(self, bytes data)
    # The same for bytes that are not a Python object. A raw payload is copied once.
    cdef bytes encode_view(self, const uint8_t* data, size_t n)
    # Returns the decoded bytes of a payload (any bytes-like object), with one copy if it is raw. Raises FormatError.
    cpdef bytes decode(self, object payload)
    # Decodes a raw payload without a copy. Sets out and out_n, and returns the object that owns them: None if they
    # point into `payload` and live as long as it does, else a bytes object that the caller keeps while it uses them.
    # Raises FormatError.
    cdef object decode_view(self, const uint8_t* payload, size_t n, const uint8_t** out, size_t* out_n)
    cdef bytes _encode(self, const uint8_t* data, size_t n, bytes whole)
    cdef bytes _try(self, bytes whole)
    cdef bytes _flagged(self, uint8_t flag, const uint8_t* data, size_t n, size_t before)
    cdef bytes _decompress(self, const uint8_t* payload, size_t n)
