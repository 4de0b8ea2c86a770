"""Keys or values in one buffer: `put_many` takes them without an object for each.

The buffer belongs to the caller, who should leave it alone meanwhile. Offsets are checked whenever they are used, so a
change of them gives wrong keys at worst and no look beyond the buffer.
"""

from cpython.buffer cimport (PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBUF_STRIDES, PyBuffer_Release, PyObject_CheckBuffer,
                             PyObject_GetBuffer)
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t


cdef class Column:
    def __init__(self, data, offsets, str name not None):
        if self._has_data:
            raise ValueError(f"{name} are given already")
        self.name = name
        if not PyObject_CheckBuffer(data):
            raise TypeError(f"{name} must be an array or a buffer of bytes, not {type(data).__name__}")
        PyObject_GetBuffer(data, &self._data, PyBUF_SIMPLE if offsets is not None else PyBUF_STRIDES | PyBUF_FORMAT)
        self._has_data = True
        if offsets is None:
            self._fixed()
        else:
            self._varying(offsets)

    def __dealloc__(self):
        if self._has_data:
            PyBuffer_Release(&self._data)
        if self._has_offsets:
            PyBuffer_Release(&self._offsets)

    cdef int _fixed(self) except -1:
        """Strings of one width."""
        cdef bytes form = self._data.format if self._data.format != NULL else b"B"
        if self._data.ndim == 2 and self._data.itemsize == 1 and (self._data.shape[1] <= 1 or self._data.strides[1] == 1):
            self._width = self._data.shape[1]
        elif self._data.ndim == 1 and form.endswith((b"s", b"x")) and form.strip(b"0123456789") in (b"s", b"x"):
            self._width = self._data.itemsize
            self._padded = form.endswith(b"s")
        else:
            raise TypeError(
                f"{self.name} must be of bytes of one width, such as NumPy's S16, or a buffer with offsets; their form is "
                f"{form.decode('ascii', 'replace')!r} in {self._data.ndim} dimensions")
        self.size = self._data.shape[0]
        return 0

    cdef int _varying(self, offsets) except -1:
        """Strings between offsets."""
        cdef bytes form
        if not PyObject_CheckBuffer(offsets):
            raise TypeError(f"the offsets of {self.name} must be an array of numbers, not {type(offsets).__name__}")
        PyObject_GetBuffer(offsets, &self._offsets, PyBUF_ND | PyBUF_FORMAT)
        self._has_offsets = True
        form = self._offsets.format if self._offsets.format != NULL else b"B"
        if self._offsets.ndim != 1 or self._offsets.itemsize not in (4, 8) or form.strip(b"<=@") not in (
                b"i", b"l", b"q", b"I", b"L", b"Q"):
            raise TypeError(f"the offsets of {self.name} must be whole numbers of 32 or 64 bits in one dimension")
        if self._offsets.shape[0] < 1:
            raise ValueError(f"the offsets of {self.name} must be one more than they are")
        self.size = self._offsets.shape[0] - 1
        self._unsigned = form.strip(b"<=@") in (b"I", b"L")
        return 0

    cdef int at(self, Py_ssize_t place, const uint8_t** p, size_t* n) except -1:
        cdef int64_t begin, end
        if not self._has_offsets:
            p[0] = <const uint8_t*>self._data.buf + place * self._data.strides[0]
            n[0] = self._width
            while self._padded and n[0] and p[0][n[0] - 1] == 0:
                n[0] -= 1
            return 0
        if self._offsets.itemsize == 8:
            begin, end = (<int64_t*>self._offsets.buf)[place], (<int64_t*>self._offsets.buf)[place + 1]
        elif self._unsigned:
            begin, end = (<uint32_t*>self._offsets.buf)[place], (<uint32_t*>self._offsets.buf)[place + 1]
        else:
            begin, end = (<int32_t*>self._offsets.buf)[place], (<int32_t*>self._offsets.buf)[place + 1]
        if not 0 <= begin <= end <= self._data.len:
            raise ValueError(f"pairs[{place}]: the offsets of {self.name} are {begin} and {end}, and there are "
                             f"{self._data.len} bytes")
        p[0] = <const uint8_t*>self._data.buf + begin
        n[0] = end - begin
        return 0

    def __len__(self):
        return self.size

    def __getitem__(self, Py_ssize_t place):
        cdef const uint8_t* p
        cdef size_t n
        if not 0 <= place < self.size:
            raise IndexError(place)
        self.at(place, &p, &n)
        return PyBytes_FromStringAndSize(<const char*>p, n)
