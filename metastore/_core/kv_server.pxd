from libc.stdint cimport int64_t, uint8_t, uint64_t

from metastore._core.batch cimport BatchProposer
from metastore._core.h2_request cimport Request
from metastore._core.mvcc cimport Store
from metastore._core.mvcc_stream cimport Chunk
from metastore._core.mvcc_txn_work cimport WalkWork
from metastore._core.waiter cimport Waiter
from metastore._core.work cimport Work
from metastore._core.work_queue cimport Starter, Waiting, WorkQueue

cdef enum:
    METHOD_RANGE = 0
    METHOD_PUT = 1
    METHOD_DELETE_RANGE = 2
    METHOD_TXN = 3
    METHOD_COMPACT = 4
    METHOD_RANGE_STREAM = 5
    METHOD_KV_LAST = 5
    METHOD_CONFIRM = 6     # no call of a client, but a ReadIndex round by itself


cdef class KVServer(Starter):
    cdef readonly Store store
    cdef readonly BatchProposer proposer
    cdef readonly dict waiters            # request id -> Waiter; ids rise, so the dict is in order of admission
    cdef readonly list reads              # (waiter, method, body, when it came) for the next ReadIndex round
    cdef readonly size_t reads_waiting    # linearizable reads that are not answered yet, those in `reads` included
    cdef readonly uint64_t next_id
    cdef readonly size_t writer           # a number for the connection that wrote last, its place in memory; not 0
    cdef readonly size_t max_request_bytes, max_txn_ops, max_txn_walk, max_reads
    cdef readonly size_t max_key_bytes    # of a key that is read: what this member takes; 0: no limit
    cdef public size_t max_logged_key     # of a key that is logged: what all members take; 0: no limit
    cdef readonly uint64_t[6] calls       # calls by method, refused ones too
    cdef readonly uint64_t refused
    cdef public int64_t room              # bytes that may still be admitted before `quota` is asked again
    cdef public bint short                # whether memory is short: writes that take more of it are refused
    cdef public int barred                # kinds of the alarms for which this member, when it leads, refuses; bits
    cdef public object quota              # a Quota (see the .pyi), or None
    cdef public int cluster_level         # operation level of all members: nothing above it is admitted
    cdef public bint holding              # this member takes part in nothing yet: serializable reads wait as well
    cdef readonly uint64_t over_quota     # puts refused for lack of room or for the alarm
    cdef public bint careful              # whether memory does not suffice to delete everything at once
    cdef readonly uint64_t over_memory    # writes refused because memory was short
    cdef object refusal                   # error that every call gets, or None
    cdef int64_t log_room                 # bytes that puts may take in the log; other operations may take more
    cdef int64_t log_left                 # bytes that any operation may take in the log
    cdef object log_refusal               # class of the error for an operation that finds too little room
    cdef readonly dict deferred           # session -> reads that wait until their client takes earlier replies
    cdef readonly WorkQueue queue         # requests for which one turn is too short
    cdef int64_t left                     # units that new requests of this turn may still cost
    cdef int64_t left_bytes               # bytes of replies about single keys that this turn may still make
    cdef int64_t pace                     # Engine.pace
    cdef bint owes                        # whether writes are answered in this turn, or may be
    cdef size_t company                   # other reads that are answered in this turn
    cdef bint admitted                    # a call was admitted while late ones were served
    cdef Waiting starting                 # the request out of the queue that is being admitted
    cdef object walks                     # (request id, keys it looks at) of writing transactions, oldest first
    cdef list late_writes                 # heap of (when it came, request id) of writes that waited for a later turn
    cdef readonly size_t walking          # the sum of those keys over the transactions that are not answered
    cdef double time                      # the newest moment that a caller has passed (seconds)
    cdef list held                        # compactions that wait for the space to be given back
    cdef readonly dict streams            # Request -> RangeStream that has still chunks to send
    cdef dict parked                      # those that wait for their client to take a chunk, the longest first
    cdef readonly bint resumed            # a parked stream can go on
    cdef double overtaken                 # since when streams hold up a sweep (seconds); negative: they do not

    cpdef list handle(self, list requests, double now)
    cdef int enter(self, int method, bytes body, Waiter waiter, double now) except -1
    cdef int turn_away(self, Waiter waiter, error) except -1
    cdef int admit(self, int method, bytes body, Waiter waiter, double now, size_t walk) except -1
    cdef int check_room(self, uint8_t kind, const uint8_t* body, size_t size) except -1
    cdef int check_log(self, uint8_t kind, const uint8_t* body, size_t size) except -1
    cdef int write(self, uint8_t kind, const uint8_t* body, size_t size, Waiter waiter, double now) except -1
    cdef int read(self, int method, bytes body, Waiter waiter, bint serializable, double now) except -1
    cdef bint must_wait(self, Waiter waiter, int method, bytes body)
    cdef int answer(self, int method, bytes body, Waiter waiter, double now) except -1
    cdef int answer_all(self, list reads) except -1
    cdef int attempt(self, int method, bytes body, Waiter waiter, double now, size_t walk=*) except -1
    cdef int admit_txn(self, bytes body, Waiter waiter, double now) except -1
    cdef int measure(self, WalkWork walk, bytes body, Waiter waiter, double now) except -1
    cdef bint may_walk(self, size_t walk) except -1
    cdef int walk(self, size_t walk, bytes body, Waiter waiter, double now) except -1
    cdef int keep_time(self, double now) except -1
    cdef int later(self, int method, bytes body, Waiter waiter, Work work, double now, size_t walk=*) except -1
    cdef Work work_of(self, int method, bytes body, Waiter waiter)
    cdef object answer_now(self, int method, bytes body, Waiter waiter, double now)
    cdef int stream(self, bytes body, Request request, double now) except -1
    cdef int send_chunk(self, Request request, Chunk chunk) except -1
    cdef int shed(self) except -1
    cpdef bint serve_late(self, int64_t budget=*, int64_t late=*) except -1
    cpdef serve_reads(self, list reads)
    cpdef fail_reads(self, list reads, error)
    cpdef list take_reads(self)
