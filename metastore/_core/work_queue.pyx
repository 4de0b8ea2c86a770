"""The order in which works go on in the turns of the loop (work.pyx defines a work).

Clients take turns of QUANTUM units each, whatever they have asked for: a client that wants a thousand counts of a
million keys does not delay another client's list longer than one that wants a single count. A turn of the loop gives
each a PIECE only if somebody waits for the next turn. The requests of one client are done one after the other. At most
MOST_BEGUN works are begun at a time, each for another client. While they hold more than 256 MiB together, none is
begun, and only one of those that hold the most goes on; that one alone may hold 512 MiB. So the sum stays below both
limits and one piece of each work. Both limits are lower where there is little memory (`set_held_most` in work.pyx).
"""

from collections import deque

from libc.stdint cimport int64_t

from metastore import errors
from metastore._core.h2_request cimport Request
from metastore._core.waiter cimport Waiter
from metastore._core.work cimport Work, held_together

cdef enum:
    MOST_BEGUN = 32


cdef class Waiting:
    """See `work_queue.pxd`."""

    cdef bint gone(self):
        """Whether nobody waits for the request any more."""
        return isinstance(self.waiter, Request) and ((<Request>self.waiter).closed or (<Request>self.waiter).answered)


cdef class Starter:
    """Base of the owner of a queue."""

    cdef bint put_off(self, Waiting one) except -1:
        """Take over a request that is not to be begun yet because its client has not taken earlier replies. Return
        whether it was taken over."""
        return False

    cdef bint full(self, Waiting one) except -1:
        """Whether there is no room for the reply of a begun request."""
        return False

    cdef int64_t start(self, Waiting one) except -1:
        """Begin a request: set `one.work`, or answer it at once. Return the cost in units."""
        raise NotImplementedError

    cdef bint enter_walk(self, Waiting one) except -1:
        """Take over a transaction that has waited until it may look at `one.walk` keys. Return False if it must still
        wait."""
        raise NotImplementedError

    cdef int finish(self, Waiting one, Work work) except -1:
        """Answer a request whose work is done. It has left the queue."""
        one.waiter.complete(work.reply)
        return 0

    cdef bint is_pressed(self) except -1:
        return self.pressed is not None and self.pressed()

    cdef bint go_on(self, Work work, int64_t budget, int64_t pace) except -1:
        """Go on with a work for about `budget` units, or until somebody waits for the next turn. A unit of work costs
        `pace` of them. Return whether it is done."""
        cdef int64_t most
        cdef bint done
        self.spent = 0
        while True:
            most = budget - self.spent
            if self.pressed is not None and most > PIECE:
                most = PIECE
            done = work.step(<size_t>max(1, most // pace))
            self.spent += <int64_t>work.cost * pace
            if done or self.spent >= budget or self.is_pressed():
                return done


cdef class WorkQueue:
    """The requests that are done in pieces, with a line for each client."""

    def __cinit__(self):
        self.lines = {}
        self.ring = deque()
        self.doomed = deque()

    cdef bint serves(self, Waiter waiter):
        """Whether a request of the same client is in the queue."""
        return ((<Request>waiter).session if isinstance(waiter, Request) else None) in self.lines

    cdef int push(self, Waiting one) except -1:
        """Add a request, begun or not."""
        client = (<Request>one.waiter).session if isinstance(one.waiter, Request) else None
        line = self.lines.get(client)
        if line is None:
            line = self.lines[client] = deque()
            self.ring.append(client)
        line.append(one)
        self.count += 1
        if one.work is not None:
            self.begun += 1
            self.weigh(one)
        return 0

    cdef list overdue(self, double before):
        """Remove the requests that came before a moment (seconds) and are not begun. Return their waiters."""
        cdef Waiting one
        cdef list waiters = []
        for client in list(self.lines):
            line = self.lines[client]
            late = [one for one in line if one.work is None and one.now <= before]
            for one in late:
                line.remove(one)
                self.drop(one)
                waiters.append(one.waiter)
            if not line:
                del self.lines[client]
                self.ring.remove(client)
        return waiters

    cdef int weigh(self, Waiting one) except -1:
        """Update the sum of what is held."""
        self.held += one.work.held - one.counted
        one.counted = one.work.held
        return 0

    cdef int drop(self, Waiting one) except -1:
        """Update the sums for a request that has left its line."""
        self.count -= 1
        self.held -= one.counted
        one.counted = 0
        if self.heavy is one:
            self.heavy = None
        if self.first is one:
            self.first = None
        if one.work is not None:
            self.begun -= 1
            self.doomed.append(one.work)
            one.work = None
        return 0

    cdef bint preferred(self, Waiting one):
        """Whether this work goes on while memory is short: the one that has the most to give back does."""
        if self.heavy is None and one.counted * self.begun >= self.held:
            self.heavy = one
        return self.heavy is one

    cdef bint leads(self, Waiting one):
        """Whether this transaction is the next of those that wait to look at many keys. The first one that is met
        leads, so a transaction that looks at more keys than others is not overtaken for ever."""
        if self.first is None:
            self.first = one
        return self.first is one

    cdef bint may_begin(self) noexcept:
        return self.begun < MOST_BEGUN and self.held < held_together()

    cdef int64_t serve(self, Starter starter, int64_t budget, size_t pace) except? -1:
        """Go on with all requests, client by client, for about `budget` units, or until somebody waits for the next
        turn. A unit of work costs `pace` units of the budget. Return what is left of the budget."""
        cdef Py_ssize_t idle = 0
        cdef int64_t cost, since = 0
        cdef bint waits = False
        budget = self.clean(budget)
        self.stalled = False
        while self.ring and budget > 0 and idle < len(self.ring):
            client = self.ring.popleft()
            line = self.lines[client]
            cost = self.serve_one(line, starter, budget, pace, &waits)
            budget -= cost
            since += cost
            idle = idle + 1 if waits else 0
            if line:
                self.ring.append(client)
            else:
                del self.lines[client]
            if since >= PIECE:
                if starter.is_pressed():
                    return budget
                since = 0
        self.stalled = not self.doomed and idle > 0 and idle >= len(self.ring)
        return budget

    cdef int64_t serve_one(self, object line, Starter starter, int64_t budget, size_t pace, bint* stuck) except -1:
        """Serve one quantum of a client. Return its cost. `stuck` says that nothing could be done for the client
        now."""
        cdef Waiting one = line[0]
        cdef Work work
        cdef int64_t cost = 1
        cdef bint done
        stuck[0] = False
        if one.gone() or (one.work is None and starter.put_off(one)):
            line.popleft()
            self.drop(one)
            return cost
        try:
            if one.walk:
                stuck[0] = not (self.leads(one) and starter.enter_walk(one))
                if not stuck[0]:
                    line.popleft()
                    self.drop(one)
                return cost
            if one.work is None:
                if not self.may_begin():
                    stuck[0] = True
                    return 0
                cost += starter.start(one)
                if one.work is None:
                    line.popleft()
                    self.drop(one)
                    return cost
                self.begun += 1
            elif (self.held > held_together() and not self.preferred(one)) or starter.full(one):
                stuck[0] = True
                return 0
            done = starter.go_on(one.work, min(budget, <int64_t>QUANTUM), pace)
            cost += starter.spent
        except errors.ApiError as error:
            line.popleft()
            self.drop(one)
            one.waiter.fail(error)
            return cost
        except BaseException:
            # A failure of the engine stops the node.
            line.popleft()
            self.drop(one)
            one.waiter.fail(errors.Stopped())
            raise
        if done:
            work = one.work
            line.popleft()
            self.drop(one)
            starter.finish(one, work)
        else:
            one.work.freeze()
            self.weigh(one)
        return cost

    cdef int64_t clean(self, int64_t budget) except? -1:
        """Give back the memory of works that are over. Return what is left of the budget."""
        cdef int64_t piece
        while self.doomed and budget > 0:
            piece = min(budget, <int64_t>QUANTUM)
            if (<Work>self.doomed[0]).discard(<size_t>piece):
                self.doomed.popleft()
                piece = 1
            budget -= piece
        return budget

    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.ring or self.doomed)

    cdef list abandon(self):
        """Give up all requests, because the node stops. Return the waiters, which the caller answers."""
        cdef Waiting one
        cdef list found = []
        for line in self.lines.values():
            for one in line:
                self.drop(one)
                found.append(one.waiter)
        self.lines.clear()
        self.ring.clear()
        while self.doomed:
            self.clean(1 << 30)
        return found
