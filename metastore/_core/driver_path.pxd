from libc.stdint cimport uint64_t

from metastore._core.batch cimport BatchProposer
from metastore._core.codec cimport PayloadCodec
from metastore._core.driver_accounts cimport PendingBatches
from metastore._core.driver_budgets cimport Budgets
from metastore._core.driver_parts cimport ChangesFields, CommittedFields, ReadsFields
from metastore._core.entry cimport HardState
from metastore._core.kv_server cimport KVServer
from metastore._core.mvcc_apply cimport Applier
from metastore._core.raft cimport RawNode
from metastore._core.raft_types cimport Ready

cdef class DriverPath:
    cdef readonly RawNode raw
    cdef public object log                 # ports.DriverLog
    cdef readonly Applier applier
    cdef readonly BatchProposer proposer
    cdef readonly PayloadCodec codec
    cdef readonly KVServer kv
    cdef readonly object link              # replica.peer_link.PeerLink
    cdef readonly object points            # ports.Points
    cdef readonly Budgets _budgets
    # What the subclass makes.
    cdef public ReadsFields reads          # replica.read_rounds.ReadRounds
    cdef public ChangesFields changes      # replica.membership_changes.MembershipChanges
    cdef public CommittedFields committed  # replica.membership_changes.CommittedChanges
    cdef public PendingBatches pending
    cdef public uint64_t leader_id         # 0: none is known
    cdef readonly uint64_t term
    cdef public bint stopping              # all queued work is due at once
    cdef readonly bint backlog             # `pump` left work that it can do without waiting
    cdef public bint watched               # watchers wait here for what is applied
    cdef public object tell_at             # when a leader sends a commit index that no append has carried (s), or None
    # ---- the log
    cdef readonly uint64_t _handed         # the last Ready that was handed to the log
    cdef readonly uint64_t _reported       # the last one that was reported to the core
    cdef readonly uint64_t _synced         # the last one that the log has reported
    cdef list _unsynced                    # those behind it that a sync must cover
    cdef public object _installing         # (number, index) of the Ready whose snapshot is being installed, or None
    cdef readonly HardState _hard_state    # the newest that a Ready had
    cdef public HardState _late            # one that was not handed to the log yet, or None
    cdef readonly uint64_t _late_number    # the Ready that it came with
    cdef readonly double _last_append      # when (s)
    cdef public bint marked                # a marker proves all that the log holds
    # ---- the state
    cdef Py_ssize_t _spent                 # units that applying has cost in this turn
    cdef public object _images             # entry images that are being applied; None: there are none
    cdef public Py_ssize_t _at             # the offset up to which they are applied
    cdef public uint64_t _unwritten        # the last applied entry, as long as the engine does not have it
    cdef public object retry_at            # when a busy engine is tried again (s); None: it is not busy
    cdef public object busy_since          # since when it has been busy (s), or None

    # A subclass may override these, because compiled code then calls its method.
    cpdef pump(self, double now)
    cpdef on_disk(self, double now)
    cpdef _go_on(self, double now)
    cpdef _propose(self, double now)
    cpdef bint _persist(self, Ready ready, double now) except -1
    cpdef _apply_on(self, double now)
    cpdef _commit(self, double now)
    cpdef _passed(self, uint64_t last)
    cpdef _durable(self, uint64_t synced)
    cpdef _written(self)
    # It does not see overrides of these.
    cdef bint must_judge(self, bint leads, double now) except -1
    cdef bint carry(self, Ready ready, double now) except -1
    cdef int confirm_reads(self, Ready ready, double now) except -1
    cdef int apply_part(self, object images) except -1
