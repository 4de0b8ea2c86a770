from libc.stdint cimport int64_t, uint32_t, uint64_t

from metastore._core.mvcc cimport Store
from metastore._core.watch_index cimport Group, Index, Stream, Watcher
from metastore._core.watch_wire cimport Change, Draft, Marks, WatchRequest


cdef class Feed:
    cdef Index index
    cdef int64_t at          # the next revision to read
    cdef uint32_t sub        # the next of its changes
    cdef int64_t to          # the last revision of this pass
    cdef list touched        # groups with events, to be delivered from `reached` on
    cdef size_t reached
    cdef list receivers      # watchers of the group that is being delivered, the next one last; None: none is
    cdef dict made           # long responses to them by id, and whether they are fragments
    cdef Draft draft         # the response that is put together
    cdef size_t held         # bytes of the events that groups hold
    cdef bint delivering

    cdef bint over(self) noexcept


cdef class WatchHub:
    cdef readonly Store store
    cdef readonly int64_t seen           # LIVE watchers have been sent everything up to this revision
    cdef readonly size_t count           # watchers
    cdef readonly size_t units           # of these, see Watcher.units
    cdef readonly size_t max_per_stream, max_per_node, fragment_size, max_response, max_held, batch, piece
    cdef readonly uint64_t events_sent, responses_sent
    cdef Feed live
    cdef bint passing                    # a pass of `live` is under way
    cdef list feeds                      # of those that are BEHIND
    cdef dict waiting_room               # Watcher -> None: BEHIND, and in no feed yet
    cdef dict blocked                    # Stream -> dict of its watchers that wait until it takes more
    cdef list future                     # heap of (revision, serial, Watcher)
    cdef list alarms                     # heap of (time, serial, Watcher): when to look for a progress notification
    cdef dict asking                     # Stream -> None: progress was asked for
    cdef uint64_t serial
    cdef dict closing                    # Stream -> None: it is gone, its watchers are not yet
    cdef list doomed                     # feeds whose watchers have lost their history
    cdef uint64_t reloads                # of the store, when we looked last
    cdef double interval
    cdef object jitter
    cdef Change change
    cdef bint sent_some
    cdef public object pressed

    cdef int enter(self, Watcher watcher) except -1
    cdef int go_live(self, Watcher watcher) except -1
    cdef int fall_behind(self, Watcher watcher) except -1
    cdef int leave(self, Watcher watcher) except -1
    cdef int end_compacted(self, Watcher watcher) except -1
    cdef int reset(self) except -1
    cdef int rest(self) except -1
    cdef int clear_away(self, size_t budget) except -1
    cdef object reason_against(self, Stream stream, WatchRequest request, bytes key)
    cdef int64_t choose_id(self, Stream stream, int64_t wish) except? -1
    cdef int take_out(self, Watcher watcher) except -1
    cdef list push(self, list heap, tuple item)
    cdef int set_alarm(self, Watcher watcher, double now) except -1
    cdef size_t advance(self, Feed feed, size_t budget) except? 0
    cdef size_t pass_live(self, size_t budget) except? 0
    cdef int mature(self) except -1
    cdef int join(self) except -1
    cdef int unblock(self) except -1
    cdef int gather(self) except -1
    cdef size_t pass_past(self, Feed feed, size_t budget) except? 0
    cdef int check_compacted(self, Feed feed) except -1
    cdef size_t walk(self, Feed feed, size_t budget) except? 0
    cdef size_t collect(self, Feed feed) except? 0
    cdef int end_too_large(self, Group group, int64_t revision) except -1
    cdef int give_up(self, Feed feed, Group group) except -1
    cdef size_t deliver(self, Feed feed, size_t budget) except? 0
    cdef size_t deliver_group(self, Feed feed, Group group, size_t budget) except? 0
    cdef size_t draft(self, Feed feed, Watcher watcher, Group group, size_t budget) except? 0
    cdef int send_events(self, Watcher watcher, Group group, list messages) except -1
    cdef int block(self, Watcher watcher, int64_t next_rev) except -1
    cdef int answer(self, Stream stream, Marks* marks, int64_t revision, bytes reason) except -1
    cdef int answer_progress(self) except -1
