from libc.stdint cimport uint64_t

from metastore._core.driver_budgets cimport Budgets
from metastore._core.driver_path cimport DriverPath
from metastore._core.kv_server cimport KVServer
from metastore._core.mvcc cimport Store
from metastore._core.mvcc_apply cimport Applier
from metastore._core.raft cimport RawNode
from metastore._core.watch cimport WatchHub

cdef class RoundsFields:
    cdef public object rests_in          # (leader, term) of the driver in which there is nothing to do, or None

cdef class KeeperFields:
    cdef public bint _pressed            # whether the log had no room left on the disk when it was last asked
    cdef public bint _releasing          # a thread has let go of something that is to be freed
    cdef public bint _sweeping           # whether the sweep of a compaction is under way
    cdef public list _waiting            # (index, done) of callers that wait for a snapshot of their own
    cdef public object _thread           # writes a snapshot, or None
    cdef public uint64_t _look_at        # the entry after which the next snapshot may be due
    cdef public double _not_before       # an attempt that failed is not repeated earlier (s)
    cdef public uint64_t _flushed_to     # the log position that a flush under way brings to disk; 0: there is none

    cpdef bint idle(self, double now, bint pressed, uint64_t applied) except -1

cdef class ReplicaTurn:
    cdef public Store store
    cdef public Applier applier
    cdef public KVServer kv
    cdef public RawNode raw
    cdef public DriverPath driver
    cdef public WatchHub watches
    cdef public RoundsFields leases      # replica.lease_rounds.LeaseRounds
    cdef public KeeperFields snapshots   # see member.assembly.Keeper
    cdef public object send              # sends the answers that are there, before requests of earlier turns and history go on
    cdef public object _lessor
    cdef public Budgets _budgets
    cdef public bint _unseen             # watchers wait for streams that the last turn did not look at
    cdef public bint _more               # the last turn left requests that it can go on with at once
    cdef public double _next_look        # when streams are looked at again (s)

    cpdef turn(self, double now, bint disk_full=*)
    cpdef next_turn(self, double now)
    cdef bint leases_rest(self) except -1
    cdef int turn_watches(self, double now) except -1
