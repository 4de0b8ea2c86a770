"""Batches of operations: the |BATCH_SEP| framing and the collector in front of Raft. Layout: FORMATS.md, "Batch"."""

from libc.stdint cimport uint8_t, uint64_t

from metastore._core.codec cimport PayloadCodec


cdef class FrameReader:
    """Iterates over the operations of a framed batch without copying them."""
    cdef const uint8_t* _at
    cdef const uint8_t* _end
    cdef bint _more
    cdef uint8_t* _own
    cdef size_t _own_size

    # Starts on the batch of n bytes at data. The bytes must stay in place while next() is called.
    cdef void reset(self, const uint8_t* data, size_t n) noexcept
    # Returns 1 and sets *p and *n to the next operation, or returns 0 at the end. The operation points into the batch.
    # If it contained an escape, it points into the reader's own buffer and lives until the next call of next() or
    # reset(). Raises FormatError.
    cdef int next(self, const uint8_t** p, size_t* n) except -1
    cdef int _next_escaped(self, const uint8_t* mark, const uint8_t** p, size_t* n) except -1


cdef struct Batch:
    size_t offset         # offset in the buffer
    size_t size           # bytes of the framed batch
    size_t count          # operations
    double first          # time at which its first operation arrived
    bint closed           # no operation may be added
    uint8_t reason        # reason why it was closed


cdef class BatchProposer:
    cdef readonly size_t max_count
    cdef size_t most_now                  # operations per batch at present; max_count, or more for what comes in bulk
    cdef readonly size_t max_bytes
    cdef readonly double max_delay
    cdef readonly size_t limit_count
    cdef readonly size_t limit_bytes
    cdef readonly bint enabled
    cdef readonly size_t queued           # operations that wait here
    cdef readonly size_t queued_bytes     # their framed bytes, separators included
    cdef readonly size_t inflight         # operations taken and not yet released
    cdef readonly size_t inflight_bytes
    cdef readonly size_t taken_count      # operations of the batch that take() returned last
    cdef readonly size_t taken_bytes      # its framed bytes, which release() needs
    cdef uint8_t* _buf
    cdef size_t _cap
    cdef size_t _tail
    cdef Batch* _batches
    cdef size_t _slots
    cdef size_t _head
    cdef size_t _count
    cdef uint64_t[8] _reasons
    cdef uint64_t _batches_out
    cdef readonly uint64_t ops_out          # operations that were taken in batches, less those that came back
    cdef uint64_t _bytes_out
    cdef uint64_t _refused
    cdef bint _undo
    cdef uint8_t _undo_reason
    cdef public list removed              # (member that dropped it, id) of operations that take() left out
    cdef dict _dropped                    # ids that must not be handed out -> (last batch that may hold them, member)
    cdef dict _waiters                    # the dict that loses the removed operations

    # Adds an encoded operation. Raises TooManyRequests or RequestTooLarge; after an error nothing has changed.
    cpdef add(self, bytes op, double now)
    # The same for an operation in parts; this writes its plain header. This is the hot path.
    cdef int add_parts(self, uint8_t kind, uint64_t request_id, const uint8_t* body, size_t n, double now) except -1
    # Returns the next batch that is due, or None. With a codec it returns the payload (flag byte + ...) instead.
    cpdef object take(self, double now, bint disk_idle, bint flush_all, PayloadCodec codec=*)
    # Queues the batch that take() returned last again, as the first one. Only directly after take().
    cpdef untake(self)
    # Reports that operations of taken batches were answered or failed.
    cpdef release(self, size_t count, size_t nbytes)
    cpdef object next_deadline(self)
    cdef bint _due(self, double now, bint disk_idle, bint flush_all, uint8_t* reason) noexcept
    cdef uint8_t* _room(self, size_t n, size_t keep) except NULL
    cdef int _put(self, uint8_t* at, size_t n, double now) except -1
    cdef int _refuse(self, size_t n) except -1
    cdef int _more_slots(self) except -1
    cdef int _shrink(self) except -1
    cpdef drop(self, ids, dict waiters, uint64_t member=*)
    cdef int _weed(self, Batch* batch) except -1
    cdef int _forget(self, uint64_t number) except -1
