"""Common part of an HTTP/2 session and its requests: nghttp2's session, the limits, the counts of bytes, and what
nghttp2's callbacks found and left for later. `h2.Session` is the only subclass."""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t, uint32_t

from metastore._core.grpc cimport FREE_FRAMES, MAX_QUEUED_FRAMES, Limits, flood_count
from metastore._core.nghttp2 cimport (
    NGHTTP2_ENHANCE_YOUR_CALM, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id,
    nghttp2_session_get_outbound_queue_size, nghttp2_session_terminate_session, nghttp2_submit_goaway,
)

cdef double PING_INTERVAL = 5.0   # seconds; etcd's grpc-keepalive-min-time
cdef enum:
    MAX_STRIKES = 2               # the value of grpc-go


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

    cdef int terminate(self, uint32_t code, object why) except -1:
        """Send GOAWAY and accept no further request."""
        self.ending = True
        self.error = why
        nghttp2_session_terminate_session(self.h2, code)
        return 0

    cdef int control(self, bint reset) except -1:
        """Count a frame that costs work and is of no use to a client. Too many of these end the connection."""
        if flood_count(&self.flood, self.limits, reset):
            self.terminate(NGHTTP2_ENHANCE_YOUR_CALM, "flood of %s frames" % ("RST_STREAM" if reset else "control"))
        return 0

    cdef int ping(self) except -1:
        """Judge a PING as grpc-go does under etcd's enforcement policy. The third PING that comes within PING_INTERVAL
        of the one before ends the connection. A client that gets replies may send as many PINGs as it likes."""
        cdef bytes why = b"too_many_pings"
        if self.pending_output:
            self.owed_at = self.now
        if self.spoke or (self.owed_at and self.now < self.owed_at + PING_INTERVAL):
            # Output may still be on its way: megabytes wait in the system's buffers for a slow client.
            self.spoke = False
            self.strikes = 0
        elif self.pinged and self.now < self.pinged + PING_INTERVAL:
            self.strikes += 1
            if self.strikes > MAX_STRIKES and not self.ending:
                # gRPC clients know this text and then ping more rarely.
                nghttp2_submit_goaway(self.h2, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(self.h2),
                                      NGHTTP2_ENHANCE_YOUR_CALM, <const uint8_t*>PyBytes_AS_STRING(why), len(why))
                self.terminate(NGHTTP2_ENHANCE_YOUR_CALM, "too many pings")
        self.pinged = self.now
        return 0

    cdef int count_queue(self) except -1:
        """Count the frames that wait for the client to take them. Too many of these end the connection.

        nghttp2 limits only its answers to PING and SETTINGS, not those to streams that it refuses.
        """
        cdef Limits limits = self.limits
        cdef size_t size = nghttp2_session_get_outbound_queue_size(self.h2)
        limits.total_queued += <long long>size - <long long>self.queued_frames
        self.queued_frames = size
        if size > FREE_FRAMES and (size > limits.max_queued or limits.total_queued > MAX_QUEUED_FRAMES):
            self.give_up("%d frames wait for a client that takes none" % size)
        return 0
