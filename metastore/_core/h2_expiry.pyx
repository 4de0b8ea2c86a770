"""Time limits of the calls of all sessions: the client's grpc-timeout, and ours for a call to arrive completely."""

from cpython.object cimport PyObject

from metastore._core.grpc cimport Limits
from metastore._core.h2_request cimport Request

from metastore import errors


def expire(Limits limits not None, double now) -> list:
    """End the calls of the sessions that share `limits` whose time is over at `now` (seconds, as for `Session.feed`):
    those past their client's grpc-timeout, which are returned, and those that have not arrived completely in time.

    This costs a few nanoseconds for each unanswered call.
    """
    cdef Request req
    cdef PyObject* at = limits.first_waiting
    cdef list late = [], unfinished = []
    while at != NULL:
        req = <Request>at
        at = req.next_waiting
        if req.answered or req.closed:
            req.end_waiting()
        elif req.expired(now):
            late.append(req)
            req.end_waiting()
        elif not req.whole:
            # Calls of one connection share its bandwidth: a call that waits behind others is not slow.
            if now > max(req.arrived + limits.receive_timeout + req.fields.data / limits.receive_rate,
                         req.session.busy_until):
                unfinished.append(req)
                req.end_waiting()
        elif req.timeout_s < 0:
            req.end_waiting()
    for req in late:
        req.refuse(errors.DEADLINE_EXCEEDED, errors.DeadlineExceeded.default)
    for req in unfinished:
        req.refuse(errors.DEADLINE_EXCEEDED, "metastore: the request was not complete after %d seconds"
                   % (now - req.arrived))
    return late
