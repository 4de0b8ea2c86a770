"""Watchers: who is told of which changes, in which order, and from where on. Pure.

A watcher is LIVE (it gets changes as they are applied), BEHIND (history is read for it), or WAITING (for a revision that
is still to come). Both kinds of reading are a `Feed`: a pass over the records of table 'r', which finds the groups of
watchers that each change concerns, collects their events, and delivers them where a revision ends. The feed of LIVE
watchers passes over what the engine was given since the last pass. A feed of history takes the watchers that are BEHIND
together; when it has come to where the LIVE feed stands, its watchers become LIVE.

Every pass goes in steps of a budget, so none holds up the loop. A watcher whose stream takes no more is BEHIND from the
first event that was not sent; nothing is kept for it, so readers that have stopped cost no memory. One whose history is
compacted meanwhile is cancelled with the compact revision.

Promises (etcd.io, "API guarantees", watch): events are ordered and unique, none is left out, those of one revision come
in one response unless fragments were asked for, and progress never overtakes an event. They follow from these rules: a
watcher is in one feed at a time; a feed reads each record once, in the order of revisions; a group is delivered only
where a revision ends; a watcher changes its feed only while no pass of LIVE watchers is under way.
"""

import heapq

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from metastore._core.engine cimport EngineCursor
from metastore._core.kv_messages cimport Header
from metastore._core.mvcc_keys cimport REV_KEY_SIZE, rev_key, rev_read
from metastore._core.record cimport Record, rec_key
from metastore._core.watch_index cimport (BEHIND, GONE, LIVE, WAITING, Group, Index, Stream, Watcher, units_of)
from metastore._core.watch_wire cimport (WATCH_CANCEL, WATCH_CREATE, WATCH_PROGRESS, Change, Draft, Marks,
                                         WatchRequest, encode_response)

cdef enum:
    BATCH = 128 << 10        # bytes of events that a feed collects before it delivers them
    ITEM = 48                # what an event takes in a group's list, at least
    FEED_MOST = 512          # watchers of one feed of history
    FEEDS = 4                # feeds of history at a time
    LEAVE = 8                # steps that letting go of a watcher costs: some 20 us in a large index
    SPARE = 1000             # items of a heap whose watchers may be gone
    STEP_BYTES = 1024        # bytes of a change, or of a long response, that count as one more step
    PIECE = 64 << 10         # bytes of events that are kept together
    PROGRESS_STEPS = 1000    # notifications in one look at the time
    PORTION = 128            # of the budget of a feed of history, between two looks whether somebody waits: 0.1 ms

#: The answers to requests that cannot be served, as etcd words them.
DUPLICATE_ID = b"mvcc: duplicate watch ID provided on the WatchStream"
EMPTY_RANGE = b"mvcc: watcher range is empty"
#: Of our own: etcd 3.5 takes such a revision for a compacted one, 3.7 refuses it.
NEGATIVE_START = b"mvcc: the start revision of a watcher is negative"


@cython.no_gc_clear
cdef class Feed:
    """One pass over history for the watchers of one index."""

    def __cinit__(self):
        self.index = Index()
        self.touched = []

    cdef bint over(self) noexcept:
        """Whether everything up to `to` was read and delivered."""
        return self.at > self.to and not self.touched


cdef int forget(Watcher watcher) except -1:
    """Take the references out of a watcher that are part of cycles."""
    watcher.group = watcher.home = None
    if watcher.stream is not None:
        watcher.stream.watchers.pop(watcher.id, None)
        watcher.stream = None
    return 0


@cython.no_gc_clear              # the collector would else take away what __dealloc__ needs
cdef class WatchHub:
    """All watchers of a member.

    `max_per_stream` and `max_per_node` bound the watchers; one with long keys counts as several, one for each 512 bytes.
    A response of more than `fragment_size` bytes is cut for those who asked for fragments. A watcher for which one revision
    has more than `max_response` bytes of events is cancelled. A feed that holds more than `max_held` bytes for several
    groups feeds them alone; it never holds twice as much. It delivers where it has `batch` bytes. `interval` is the time
    between two progress notifications in seconds, to which `jitter()` (0 to 1) adds up to a tenth. Whoever owns the hub
    calls `step` when the store has changed, and `tick` with the time. `pressed()` says whether somebody waits for the
    next turn (None: nobody ever does); history then waits for it, too. LIVE watchers do not, or the rate of puts at
    which they keep up would be lower.
    """

    def __init__(self, Store store not None, *, size_t max_per_stream=50_000, size_t max_per_node=100_000,
                 size_t fragment_size=1_572_864, size_t max_response=128 << 20,
                 size_t max_held=4 << 20, size_t batch=BATCH, double interval=600.0, jitter=lambda: 0.0):
        self.store = store
        self.max_per_stream, self.max_per_node = max_per_stream, max_per_node
        self.fragment_size, self.max_response, self.max_held = fragment_size, max_response, max_held
        self.batch, self.piece = batch, min(<size_t>PIECE, fragment_size)
        self.interval = interval
        self.jitter = jitter
        self.live = Feed()
        self.feeds = []
        self.waiting_room, self.blocked, self.asking = {}, {}, {}
        self.future, self.alarms = [], []
        self.closing, self.doomed = {}, []
        self.change = Change()
        self.seen = store.saved_rev
        self.reloads = store.reloads

    def __dealloc__(self):
        """End the cycles of watchers, streams and groups, which no garbage collector sees."""
        cdef Feed feed
        cdef Group group
        if self.future is None:
            return                              # it was never made
        for feed in [self.live, *self.feeds, *self.doomed]:
            for group in feed.index.groups:
                for watcher in group.watchers:
                    forget(watcher)
                group.watchers = None
        for waiting in [self.waiting_room, *self.blocked.values(), [one[2] for one in self.future]]:
            for watcher in waiting:
                forget(watcher)
        for stream in self.closing:
            for watcher in list((<Stream>stream).watchers.values()):
                forget(watcher)

    # ---- what clients ask for

    def handle(self, Stream stream not None, WatchRequest request not None, double now) -> None:
        """One request of a stream. Whatever it asks, the answer goes to the stream."""
        if stream.closed:
            return
        if request.kind == WATCH_CREATE:
            self.create(stream, request, now)
        elif request.kind == WATCH_CANCEL:
            self.cancel(stream, request.watch_id)
        elif request.kind == WATCH_PROGRESS and stream.watchers:
            self.asking[stream] = None

    def create(self, Stream stream not None, WatchRequest request not None, double now) -> None:
        """Make a watcher and answer `created`."""
        cdef Watcher watcher
        cdef Marks marks
        cdef int64_t revision = self.store.rev
        cdef bytes key = request.key or b"\0"
        cdef bytes reason = self.reason_against(stream, request, key)
        marks.created, marks.canceled, marks.fragment = True, reason is not None, False
        marks.compact_revision = 0
        marks.watch_id = -1
        if reason is not None:
            self.answer(stream, &marks, revision, reason)
            return
        if not self.count and not self.passing:
            self.seen = self.store.saved_rev        # nobody has looked since
            self.reloads = self.store.reloads
        self.serial += 1
        watcher = Watcher(
            stream, self.choose_id(stream, request.watch_id), key, request.range_end,
            request.start_revision or revision + 1, request.prev_kv, request.no_put, request.no_delete,
            request.fragment, request.progress_notify, self.serial)
        stream.watchers[watcher.id] = watcher
        stream.units += watcher.units
        self.count += 1
        self.units += watcher.units
        marks.watch_id = watcher.id
        self.answer(stream, &marks, revision, None)
        if watcher.progress:
            self.set_alarm(watcher, now)
        self.enter(watcher)

    cdef object reason_against(self, Stream stream, WatchRequest request, bytes key):
        """Why a watcher cannot be made, or None."""
        cdef size_t units = units_of(key, request.range_end)
        if request.range_end and request.range_end != b"\0" and key >= request.range_end:
            return EMPTY_RANGE
        if request.start_revision < 0:
            return NEGATIVE_START
        if request.watch_id < 0 or (request.watch_id and request.watch_id in stream.watchers):
            return DUPLICATE_ID
        if stream.units + units > self.max_per_stream:
            return b"metastore: too many watchers on this stream, limits.max_watches_per_stream is %d" \
                % self.max_per_stream
        if self.units + units > self.max_per_node:
            return b"metastore: too many watchers on this member, limits.max_watches_per_node is %d" % self.max_per_node
        return None

    cdef int64_t choose_id(self, Stream stream, int64_t wish) except? -1:
        if wish:
            return wish
        while stream.next_id in stream.watchers:
            stream.next_id += 1
        stream.next_id += 1
        return stream.next_id - 1

    def cancel(self, Stream stream not None, int64_t ident) -> None:
        """End a watcher. One that does not exist gets no answer."""
        cdef Watcher watcher = stream.watchers.get(ident)
        cdef Marks marks
        if watcher is None:
            return
        self.leave(watcher)
        marks.created, marks.canceled, marks.fragment = False, True, False
        marks.compact_revision = 0
        marks.watch_id = ident
        self.answer(stream, &marks, self.store.rev, None)

    def close(self, Stream stream not None) -> None:
        """The stream is gone. Its watchers go in the steps that follow, for there may be many."""
        if not stream.closed:
            stream.closed = True
            self.asking.pop(stream, None)
            self.blocked.pop(stream, None)
            if stream.watchers:
                self.closing[stream] = None

    # ---- where a watcher stands

    cdef int enter(self, Watcher watcher) except -1:
        """Put a watcher that is in no feed where its next revision belongs."""
        if watcher.next_rev > self.seen + 1:
            watcher.state = WAITING
            watcher.stream.waiting += 1
            self.future = self.push(self.future, (watcher.next_rev, watcher.serial, watcher))
        elif watcher.next_rev == self.seen + 1 and not self.passing:
            self.go_live(watcher)
        else:
            self.fall_behind(watcher)
        return 0

    cdef int go_live(self, Watcher watcher) except -1:
        if watcher.state == BEHIND:
            watcher.stream.behind -= 1
        watcher.state = LIVE
        return self.live.index.add(watcher, 0)

    cdef int fall_behind(self, Watcher watcher) except -1:
        if watcher.state != BEHIND:
            watcher.state = BEHIND
            watcher.stream.behind += 1
        self.waiting_room[watcher] = None
        return 0

    cdef int take_out(self, Watcher watcher) except -1:
        """Take a watcher out of the index that it is in."""
        return watcher.home.remove(watcher) if watcher.home is not None else 0

    cdef int leave(self, Watcher watcher) except -1:
        """Forget a watcher."""
        cdef Stream stream = watcher.stream
        cdef dict stuck
        self.take_out(watcher)
        self.waiting_room.pop(watcher, None)
        stuck = self.blocked.get(stream)
        if stuck is not None:
            stuck.pop(watcher, None)
        if watcher.state == BEHIND:
            stream.behind -= 1
        elif watcher.state == WAITING:
            stream.waiting -= 1
        watcher.state = GONE
        del stream.watchers[watcher.id]
        stream.units -= watcher.units
        self.count -= 1
        self.units -= watcher.units
        return 0

    cdef int end_compacted(self, Watcher watcher) except -1:
        """Cancel a watcher whose history is gone. The header's revision is 0 then (etcd)."""
        cdef Marks marks
        self.leave(watcher)
        marks.created, marks.canceled, marks.fragment = False, True, False
        marks.compact_revision = self.store.compacted
        marks.watch_id = watcher.id
        return self.answer(watcher.stream, &marks, 0, None)

    cdef int block(self, Watcher watcher, int64_t next_rev) except -1:
        """Its stream takes no more: go on from `next_rev` when it does."""
        cdef dict stuck
        self.take_out(watcher)
        watcher.next_rev = next_rev
        if watcher.state != BEHIND:
            watcher.state = BEHIND
            watcher.stream.behind += 1
        stuck = self.blocked.get(watcher.stream)
        if stuck is None:
            stuck = self.blocked[watcher.stream] = {}
        stuck[watcher] = None
        return 0

    # ---- steps

    @property
    def idle(self) -> bool:
        """Whether nobody watches and nothing is under way, so that `step` need not be called."""
        return self.count == 0 and not self.passing and not self.feeds

    @property
    def holds_history(self) -> bool:
        """Whether LIVE watchers are still to be sent revisions that a sweep may remove."""
        if self.passing:
            return self.live.at <= self.store.compacted
        return self.count > 0 and self.seen < min(self.store.compacted, self.store.saved_rev)

    def step(self, size_t budget, bint look=True) -> bool:
        """Deliver what is there, about `budget` changes and responses at most for each of live and past. `look`: whether
        to look which streams take more again, at some 50 ns each. True while there is more to do at once."""
        cdef size_t each
        cdef Feed feed
        self.sent_some = False
        if self.reloads != self.store.reloads:
            self.reset()
        if self.closing or self.doomed:
            self.clear_away(budget)
        if not self.count:
            self.rest()
            return False
        self.pass_live(budget)
        if look and self.blocked:
            self.unblock()
        if self.waiting_room:
            self.gather()
        if self.feeds:
            each = max(<size_t>1, budget // <size_t>len(self.feeds))
            for feed in list(self.feeds):
                self.pass_past(feed, each)
            if not self.passing:
                self.join()
        # The doomed have missed something that a mark would pass over.
        if self.asking and not self.passing and not self.doomed:
            self.answer_progress()
        return (self.passing or bool(self.feeds) or bool(self.waiting_room) or bool(self.closing) or bool(self.doomed)
                or (self.sent_some and bool(self.blocked)))

    @property
    def stuck(self) -> bool:
        """Whether watchers wait for their streams to take more."""
        return bool(self.blocked)

    @property
    def held(self) -> int:
        """Bytes of events that were collected and are not sent yet."""
        return self.live.held + sum([(<Feed>feed).held for feed in self.feeds])

    @property
    def waiting(self) -> int:
        """What waits for a time or a revision, watchers that are gone included."""
        return len(self.future) + len(self.alarms)

    @property
    def next_alarm(self) -> float:
        """When `tick` has to be called next (seconds); infinite if no watcher asks for progress notifications."""
        return self.alarms[0][0] if self.alarms else float("inf")

    cdef int reset(self) except -1:
        """The store was filled from a snapshot. Every pass goes on where it stands, for revisions are the same in all
        states of a cluster; but LIVE watchers may have lost history that the snapshot does not have."""
        self.reloads = self.store.reloads
        if (self.live.at if self.passing else self.seen + 1) < self.store.compacted:
            self.doomed.append(self.live)
            self.live = Feed()
            self.passing = False
            self.seen = self.store.saved_rev
        return 0

    cdef int rest(self) except -1:
        """Nobody watches: drop what was under way, for it holds events and keeps a sweep waiting."""
        self.live = Feed()
        self.passing = False
        self.feeds = []
        self.doomed = []
        self.asking = {}
        return 0

    cdef int clear_away(self, size_t budget) except -1:
        """Let go of the watchers of streams that are gone, and end those that have lost their history."""
        cdef size_t left = 1 + budget // LEAVE
        cdef Stream stream
        cdef Feed feed
        cdef Group group
        while left and self.closing:
            stream = next(iter(self.closing))
            while left and stream.watchers:
                self.leave(next(iter(stream.watchers.values())))
                left -= 1
            if not stream.watchers:
                del self.closing[stream]
        while left and self.doomed:
            feed = self.doomed[0]
            while left and feed.index.count:
                group = next(iter(feed.index.groups))
                self.end_compacted(next(iter(group.watchers)))
                left -= 1
            if not feed.index.count:
                self.doomed.pop(0)
        return 0

    cdef size_t pass_live(self, size_t budget) except? 0:
        """Bring LIVE watchers to where the engine stands, or as far as the budget goes."""
        cdef size_t spent = 1
        cdef Feed live = self.live
        while True:
            if self.passing:
                spent += self.advance(live, budget - min(spent, budget - 1))
                if not live.over():
                    return spent
                self.passing = False
                self.seen = live.to
            if self.feeds:
                self.join()
            self.mature()
            if self.store.saved_rev <= self.seen:
                return spent
            if not live.index.count:
                self.seen = self.store.saved_rev
                continue
            live.at, live.sub, live.to = self.seen + 1, 0, self.store.saved_rev
            self.passing = True

    cdef int mature(self) except -1:
        """The revisions that WAITING watchers waited for are next."""
        cdef Watcher watcher
        while self.future and self.future[0][0] <= self.seen + 1:
            watcher = heapq.heappop(self.future)[2]
            if watcher.state == WAITING:
                watcher.stream.waiting -= 1
                self.enter(watcher)
        return 0

    # ---- history

    cdef int unblock(self) except -1:
        """Look which streams take more again. It costs some 50 ns a stream."""
        cdef Stream stream
        cdef Watcher watcher
        for stream in list(self.blocked):
            if not stream.sink.full():
                for watcher in self.blocked.pop(stream):
                    self.waiting_room[watcher] = None
        return 0

    cdef int gather(self) except -1:
        """Begin feeds of history for watchers that wait for one."""
        cdef Feed feed
        cdef Watcher watcher
        cdef list chosen
        while self.waiting_room and len(self.feeds) < FEEDS:
            chosen = []
            for watcher in self.waiting_room:
                if not watcher.alone or not chosen:
                    chosen.append(watcher)
                if watcher.alone or len(chosen) >= FEED_MOST:
                    break
            feed = Feed()
            for watcher in chosen:
                del self.waiting_room[watcher]
                if watcher.next_rev < self.store.compacted:
                    self.end_compacted(watcher)
                    continue
                if not feed.index.count or watcher.next_rev < feed.at:
                    feed.at = watcher.next_rev
                feed.index.add(watcher, watcher.next_rev)
            if feed.index.count:
                self.feeds.append(feed)
        return 0

    cdef size_t pass_past(self, Feed feed, size_t budget) except? 0:
        """Go on with a feed of history, by portions, until somebody waits for the next turn."""
        cdef size_t spent = 0
        self.check_compacted(feed)
        feed.to = self.seen
        while True:
            spent += self.advance(feed, min(budget - spent, <size_t>PORTION))
            if feed.over() or spent >= budget or (self.pressed is not None and self.pressed()):
                break
        if not feed.index.count:
            self.feeds.remove(feed)
        return spent

    cdef int check_compacted(self, Feed feed) except -1:
        """End the watchers of a feed whose history was compacted before it was read."""
        cdef Group group
        cdef Watcher watcher
        if feed.at >= self.store.compacted:
            return 0
        for group in list(feed.index.groups):
            if max(group.since, feed.at) < self.store.compacted:
                for watcher in list(group.watchers):
                    self.end_compacted(watcher)
        feed.at, feed.sub = self.store.compacted, 0
        return 0

    cdef int join(self) except -1:
        """Make the watchers LIVE whose feed has come to where LIVE watchers stand. No pass of those is under way."""
        cdef Feed feed
        cdef Group group
        cdef Watcher watcher
        for feed in list(self.feeds):
            if feed.at <= self.seen or feed.touched:
                continue
            self.feeds.remove(feed)
            for group in list(feed.index.groups):
                for watcher in list(group.watchers):
                    watcher.group = watcher.home = None
                    watcher.alone = False
                    watcher.next_rev = self.seen + 1
                    self.go_live(watcher)
        return 0

    # ---- one feed

    cdef size_t advance(self, Feed feed, size_t budget) except? 0:
        """Read and deliver, at a cost of about `budget` or until the feed is over. Something is always done."""
        cdef size_t spent = 0
        while not feed.over():
            if feed.delivering:
                spent += self.deliver(feed, budget - spent)
            else:
                spent += self.walk(feed, budget - spent)
            if spent >= budget:
                break
        return spent + 1

    cdef size_t walk(self, Feed feed, size_t budget) except? 0:
        """Read records and collect their events. Where a revision ends and enough is held, or all is read, delivering
        begins."""
        cdef uint8_t[REV_KEY_SIZE] first
        cdef EngineCursor cursor
        cdef Record* rec
        cdef int64_t main = 0
        cdef uint32_t sub = 0
        cdef size_t spent = 0, pace = self.store.engine.pace()
        if feed.at <= feed.to:
            cursor = self.store.engine.cursor()
            rev_key(first, feed.at, feed.sub)
            rec = cursor.seek(first, REV_KEY_SIZE)
            while rec != NULL and rec_key(rec)[0] == c'r' and rec.klen == REV_KEY_SIZE:
                rev_read(rec_key(rec) + 1, &main, &sub)
                if main > feed.to:
                    break
                if main > feed.at:
                    feed.at, feed.sub = main, 0
                    if feed.held >= self.batch:
                        feed.delivering = True
                        return spent + 1
                if spent >= budget:
                    feed.sub = sub
                    return spent
                self.change.take(self.store, rec)
                feed.sub = sub + 1
                spent += pace + self.collect(feed)
                rec = cursor.next()
            feed.at, feed.sub = feed.to + 1, 0
        feed.delivering = bool(feed.touched)
        return spent + 1

    cdef size_t collect(self, Feed feed) except? 0:
        """Give the event of `self.change` to the groups that it concerns."""
        cdef Change change = self.change
        cdef list groups = []
        cdef Group group
        cdef bytes event
        cdef size_t size
        feed.index.find(change.key, groups)
        for group in groups:
            if change.main < group.since or (group.no_delete if change.view.tombstone else group.no_put):
                continue
            event = change.event(group.prev_kv)
            if not group.touched:
                group.touched = True
                group.events = []
                group.first = change.main
                feed.touched.append(group)
            group.append(event, self.piece)
            group.last = change.main
            size = ITEM + <size_t>PyBytes_GET_SIZE(event)
            group.size += size
            feed.held += size
            if feed.held > self.max_held and feed.index.count > 1 and (
                    group.size > self.batch or feed.held > 2 * self.max_held):
                self.give_up(feed, group)
            elif group.size > self.max_response:
                self.end_too_large(group, change.main)
        return 1 + <size_t>len(groups) + (change.view.klen + change.view.vlen) // STEP_BYTES

    cdef int give_up(self, Feed feed, Group group) except -1:
        """One revision has more events for all these groups than may be held: feed the watchers of this one alone."""
        cdef Watcher watcher
        cdef int64_t first = group.first
        feed.held -= group.size
        for watcher in list(group.watchers):
            self.take_out(watcher)
            watcher.next_rev = max(watcher.next_rev, first)
            watcher.alone = True
            self.fall_behind(watcher)
        return 0

    cdef int end_too_large(self, Group group, int64_t revision) except -1:
        """Cancel the watchers of a group: the events of one revision take more memory than a response may."""
        cdef Watcher watcher
        cdef Marks marks
        cdef bytes reason = b"metastore: the events of revision %d take more than %d bytes" % (revision, self.max_response)
        marks.created, marks.canceled, marks.fragment = False, True, False
        marks.compact_revision = 0
        for watcher in list(group.watchers):
            marks.watch_id = watcher.id
            self.leave(watcher)
            self.answer(watcher.stream, &marks, self.store.rev, reason)
        return 0

    cdef size_t deliver(self, Feed feed, size_t budget) except? 0:
        """Send to the groups that have events; the cost."""
        cdef size_t spent = 0
        cdef Group group
        while feed.reached < <size_t>len(feed.touched):
            if spent >= budget:
                return spent
            group = feed.touched[feed.reached]
            if group.touched or feed.receivers is not None:
                spent += self.deliver_group(feed, group, budget - spent)
                if feed.receivers is not None:
                    return spent
            feed.reached += 1
        feed.touched = []
        feed.reached = 0
        feed.held = 0
        feed.delivering = False
        return spent + 1

    cdef size_t deliver_group(self, Feed feed, Group group, size_t budget) except? 0:
        """Go on sending to the watchers of a group, at a cost of about `budget`. `receivers` is None when all are
        served."""
        cdef Watcher watcher
        cdef size_t spent = 0
        if feed.receivers is None:
            feed.receivers, feed.made = list(group.watchers), {}
            feed.receivers.reverse()
        while feed.receivers:
            if spent and spent >= budget:
                return spent
            watcher = feed.receivers[len(feed.receivers) - 1]
            spent += 1
            if watcher.group is not group or watcher.stream.closed:
                feed.draft = None                   # it has left meanwhile
            elif feed.draft is None and watcher.stream.sink.full():
                self.block(watcher, max(watcher.next_rev, group.first))
            else:
                spent += self.draft(feed, watcher, group, budget - spent if budget > spent else 1)
                if feed.draft is not None:
                    return spent
                watcher.next_rev = group.last + 1
            feed.receivers.pop()
        feed.receivers = feed.made = None
        group.clear()
        return spent + 1

    # ---- responses

    cdef size_t draft(self, Feed feed, Watcher watcher, Group group, size_t budget) except? 0:
        """Send the events of a group to one watcher, or go on putting the response together; then `draft` is not None.
        Returns the cost."""
        cdef Draft draft = feed.draft
        cdef bint fragments = watcher.fragment and group.size > self.fragment_size
        cdef tuple name = (watcher.id, fragments)
        cdef list messages = feed.made.get(name)
        cdef size_t spent = 1
        if messages is None:
            if draft is None:
                draft = Draft.__new__(Draft)
                self.store.fill_header(&draft.header)
                draft.header.revision = self.store.rev
                draft.marks.watch_id = watcher.id
                draft.events, draft.messages = group.events, []
                draft.fragment_size = self.fragment_size if fragments else 0
            spent = draft.go_on(budget)
            if draft.events is not None:
                feed.draft = draft
                return spent
            feed.draft = None
            messages = feed.made[name] = draft.messages
        self.send_events(watcher, group, messages)
        return spent

    cdef int send_events(self, Watcher watcher, Group group, list messages) except -1:
        """Send a response, or all fragments of one: nothing comes between these."""
        watcher.heard = True
        self.sent_some = True
        self.events_sent += group.number
        self.responses_sent += 1
        for message in messages:
            watcher.stream.sink.send(message)
        return 0

    cdef int answer(self, Stream stream, Marks* marks, int64_t revision, bytes reason) except -1:
        """Send a response without events."""
        cdef Header header
        self.store.fill_header(&header)
        header.revision = revision
        self.responses_sent += 1
        stream.sink.send(encode_response(&header, marks, reason, [], 0, 0))
        return 0

    cdef int answer_progress(self) except -1:
        """Answer the streams that asked for progress and have no watcher that is BEHIND."""
        cdef Stream stream
        cdef Marks marks
        marks.created = marks.canceled = marks.fragment = False
        marks.compact_revision = 0
        marks.watch_id = -1
        for stream in list(self.asking):
            if not stream.watchers:
                del self.asking[stream]
            elif not stream.behind and not stream.waiting:
                del self.asking[stream]
                self.answer(stream, &marks, self.seen, None)
        return 0

    # ---- time

    cdef int set_alarm(self, Watcher watcher, double now) except -1:
        due = now + self.interval * (1 + self.jitter() / 10)
        self.alarms = self.push(self.alarms, (due, watcher.serial, watcher))
        return 0

    cdef list push(self, list heap, tuple item):
        """The heap with one more item. Watchers that are gone stay in it until they are half of it."""
        if <size_t>len(heap) > 2 * self.count + SPARE:
            heap = [one for one in heap if (<Watcher>one[2]).state != GONE]
            heapq.heapify(heap)
        heapq.heappush(heap, item)
        return heap

    def tick(self, double now) -> None:
        """Send the progress notifications that are due at `now` (seconds), to watchers that have heard nothing since
        the last."""
        cdef Watcher watcher
        cdef Marks marks
        cdef int left = PROGRESS_STEPS
        cdef bint told
        marks.created = marks.canceled = marks.fragment = False
        marks.compact_revision = 0
        while left and self.alarms and self.alarms[0][0] <= now:
            left -= 1
            watcher = heapq.heappop(self.alarms)[2]
            if watcher.state == GONE:
                continue
            told = watcher.home is self.live.index and not self.passing
            if told and not watcher.heard and not watcher.stream.sink.full():
                marks.watch_id = watcher.id
                self.answer(watcher.stream, &marks, self.seen, None)
            watcher.heard = False
            self.set_alarm(watcher, now)
