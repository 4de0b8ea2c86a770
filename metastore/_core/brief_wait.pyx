"""Waits that are shorter than a millisecond, which the standard library's epoll cannot express: it rounds up."""

from libc.stdint cimport int64_t

from metastore._core.quiet cimport Quiet, ms_have, ms_want

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <poll.h>
    #include <stdint.h>
    #include <time.h>

    static int ms_await_readable(int fd, int64_t nanoseconds) {
        struct pollfd one = {.fd = fd, .events = POLLIN};
        struct timespec most = {nanoseconds / 1000000000, nanoseconds % 1000000000};
        return ppoll(&one, 1, &most, NULL);
    }
    """
    int ms_await_readable(int fd, int64_t nanoseconds) nogil

cdef enum:
    LONGEST = 1  # seconds


def await_readable(int fd, double seconds, Quiet quiet not None):
    """Wait without the GIL until `fd` is readable, or for `seconds`, which count as at most one. A signal ends the wait
    early. `quiet`: asks for the GIL behind the wait."""
    if seconds > 0:
        with nogil:
            ms_await_readable(fd, <int64_t>(min(seconds, LONGEST) * 1e9))
            ms_want(&quiet.asking)
        ms_have(&quiet.asking)


def readable(int fd):
    """Whether `fd` is readable. The descriptor of an epoll is if it has something to tell, which this does not take."""
    cdef int found
    with nogil:
        found = ms_await_readable(fd, 0)
    return found > 0
