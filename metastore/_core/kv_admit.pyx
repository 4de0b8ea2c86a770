"""Admission of many puts of this process: those of a `Piece` have the checks of `KVServer.admit` for a put, without an
object that the collector tracks for each, and those with a Future are admitted without a call of Python for each."""

from libc.stdint cimport uint8_t

from metastore import errors
from metastore._core.batch cimport BatchProposer
from metastore._core.kv_answers cimport FuturePut
from metastore._core.kv_keys cimport KEYS_PUT, check_keys
from metastore._core.kv_messages cimport KV_EMPTY_KEY, kv_raise
from metastore._core.kv_pieces cimport Piece, PiecePut
from metastore._core.kv_server cimport METHOD_PUT, KVServer
from metastore._core.op cimport OP_PUT

cdef enum:
    MORE = 10                # puts of pieces in one batch, for each operation that may be in one otherwise


cdef bint crowded(BatchProposer proposer) noexcept:
    """Whether half of the requests or bytes that may be in flight are in flight. The other half is for clients."""
    return ((proposer.queued + proposer.inflight) * 2 >= proposer.limit_count
            or (proposer.queued_bytes + proposer.inflight_bytes) * 2 >= proposer.limit_bytes)


cdef int admit_put(KVServer server, Piece piece, Py_ssize_t place, double now) except -1:
    """Admit one put, or answer it with the error that refuses it. Our own encoding needs no check of its form."""
    cdef PiecePut waiter = PiecePut.__new__(PiecePut)
    cdef size_t size
    cdef const uint8_t* body = piece.body(place, &size)
    waiter.piece, waiter.place = piece, place
    server.calls[METHOD_PUT] += 1
    try:
        if server.refusal is not None:
            raise server.refusal
        if 2 * piece._puts[place].klen > server.max_logged_key:    # zero bytes count twice
            check_keys(KEYS_PUT, body, size, server.max_logged_key)
        if piece._puts[place].klen == 0:
            kv_raise(KV_EMPTY_KEY, "")
        server.write(OP_PUT, body, size, waiter, now)
    except errors.ApiError as error:
        server.turn_away(waiter, error)
    except BaseException:
        waiter.fail(errors.Stopped())
        raise
    return 0


def admit_piece(KVServer server not None, Piece piece not None, double now, Py_ssize_t most) -> int:
    """Admit at most `most` puts of a piece at `now` (seconds), as long as there is room; their number. `piece.next` is
    where it goes on."""
    cdef Py_ssize_t taken = 0, place
    cdef BatchProposer proposer = server.proposer
    server.time = max(server.time, now)
    # Nobody waits for the first put of a piece alone. Batches of 500 save 0.4 us of processor time a put.
    proposer.most_now = MORE * proposer.max_count
    try:
        while piece.next < piece.size and taken < most and not crowded(proposer):
            place = piece.next
            piece.next = place + 1
            taken += 1
            admit_put(server, piece, place, now)
    finally:
        proposer.most_now = proposer.max_count
    return taken


def admit_puts(KVServer server not None, queue not None, double now, Py_ssize_t most) -> tuple:
    """Admit puts of Futures at `now` (seconds) from the left end of a deque of calls (method, body, waiter), at most
    `most`. Return their number, and the call behind them that is none and was taken out, or None."""
    cdef Py_ssize_t taken = 0
    cdef BatchProposer proposer = server.proposer
    cdef tuple call
    # The first one does not wait alone where more are here than one batch takes.
    proposer.most_now = MORE * proposer.max_count if len(queue) > <Py_ssize_t>proposer.max_count else proposer.max_count
    server.time = max(server.time, now)
    try:
        while taken < most and queue:
            call = queue.popleft()
            if type(call[2]) is not FuturePut:
                return taken, call
            taken += 1
            server.enter(METHOD_PUT, call[1], call[2], now)
    finally:
        proposer.most_now = proposer.max_count
    return taken, None
