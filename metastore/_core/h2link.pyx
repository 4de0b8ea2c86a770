"""What an HTTP/2 session and its requests share: nghttp2's session, the bounds, the accounts of bytes, and what
nghttp2's callbacks found and left for later. `h2.Session` is the one class that is made of it."""

from metastore._core.grpc cimport flood_count
from metastore._core.nghttp2 cimport NGHTTP2_ENHANCE_YOUR_CALM, nghttp2_session_terminate_session


cdef class Link:
    cdef void mark(self) noexcept:
        if not self.in_dirty:
            self.in_dirty = True
            try:
                self.dirty.append(self)
            except MemoryError:
                self.give_up("out of memory")

    cdef void give_up(self, object why) noexcept:
        if not self.failed:
            self.failed = True
            self.error = str(why)

    cdef int control(self, bint reset) except -1:
        """Count a frame that costs us and gains nobody anything; too many of them end the connection."""
        if flood_count(&self.flood, self.limits, reset):
            nghttp2_session_terminate_session(self.h2, NGHTTP2_ENHANCE_YOUR_CALM)
            self.error = "flood of %s frames" % ("RST_STREAM" if reset else "control")
        return 0
