from libc.stdint cimport int64_t, uint64_t

from metastore._core.batch cimport BatchProposer
from metastore._core.driver_path cimport DriverPath
from metastore._core.kv_server cimport KVServer
from metastore._core.replica_turn cimport ReplicaTurn
from metastore._core.wal_tail cimport LogTail

cdef class WatchingFields:
    cdef public dict ready               # Call -> None: calls with requests that wait

cdef class LeasingFields:
    cdef public dict ready               # Stream -> None: streams with requests that wait and may be taken
    cdef public list lifetimes           # (call, lease, keys) of the calls of LeaseTimeToLive of this turn
    cdef public object gathering         # deque of long answers

cdef class TasksFields:
    cdef public object ready             # deque of what goes on in the next turn: (task, outcome, error)

cdef class MembershipFields:
    cdef public bint learner             # this member has no vote
    cdef public bint removed             # the applied log has removed this member
    cdef public bint settled             # the leader knows that we have started: nothing is left to be published

cdef class AlarmsFields:
    cdef public object logged            # the alarms that the log has named

cdef class TicksFields:
    cdef public bint rests               # the member rests: `turn` is to be called in each of its turns

cdef class GatheringFields:
    cdef public bint flying              # a group was in the hands of the disk at the end of the last turn

cdef class SpaceTurn:
    cdef public bint full                # puts are refused
    cdef public bint _limited            # the KV server was told how much clients may write
    cdef public str _tight               # why the engine may run out of room, or ""
    cdef readonly LogTail _wal
    cdef readonly int64_t _most_in_flight

    cpdef turn(self)

cdef class FrontTurn:
    cdef public KVServer _kv
    cdef public BatchProposer _proposer
    cdef public DriverPath _driver
    cdef public MembershipFields _membership
    cdef public object _loop
    cdef public object _services
    cdef public object listener          # net.client_conn.Listener
    cdef public size_t most_requests, most_bytes  # that may be in flight

    cpdef handle(self, list requests)
    cpdef bint crowded(self) except -1
    cpdef balance(self)
    cdef bint beyond(self, size_t parts) except -1

cdef class MemberTurn:
    cdef public object loop
    cdef public bint ready               # it serves
    cdef public object drain             # its stop that is under way, or None
    cdef public object ended_by          # why this process must end, or None
    cdef public object _stopping         # a gate: opened to make the member stop
    cdef public ReplicaTurn replica
    cdef public DriverPath driver
    cdef public KVServer kv
    cdef public FrontTurn front
    cdef public SpaceTurn space
    cdef public WatchingFields watching
    cdef public LeasingFields leasing
    cdef public TasksFields tasks
    cdef public MembershipFields membership
    cdef public TicksFields ticks
    cdef public GatheringFields gathering
    cdef public AlarmsFields alarms
    cdef public object upkeep
    cdef public object backups
    cdef public object peering
    cdef public object direct            # DirectReads of this process, or None
    cdef public tuple _alone             # the voters where this member is the only one
    cdef public uint64_t _logged_leader

    cpdef _turn(self)
    cdef bint before(self, double now) except -1
    cdef int send(self, double now, bint requests_left) except -1
    cdef int after(self, double now) except -1
    cdef bint may_read(self) except -1
