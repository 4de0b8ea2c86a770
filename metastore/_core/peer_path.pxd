from libc.stdint cimport uint8_t, uint64_t

from metastore._core.raft_wire cimport FrameReader, Outbox

cdef enum:
    STREAM_WAITING = 0
    STREAM_CONNECTING = 1
    STREAM_GREETING = 2
    STREAM_OPEN = 3
    STREAM_CLOSED = 4


cdef class PeerChannel


cdef class PeerPath:
    cdef public object handler          # PeerHandler
    cdef public object failpoints       # or None
    cdef public list dirty              # channels to flush at the end of the turn
    cdef public uint64_t strays         # messages for members that are not known
    cdef public set _unreachable        # members for which a message was lost in this turn
    cdef readonly dict _peers           # number of a member -> what has its streams `control` and `bulk`
    cdef bytearray _room                # what is read; all channels share it, one after the other
    cdef size_t _send_size              # a write has at least one piece of output, and more up to so many bytes

    cdef bint note(self, object peer, PeerChannel channel, bint taken) except -1
    cdef int flush_dirty(self) except -1


cdef class PeerChannel:
    cdef public int kind
    cdef public int state
    cdef public int fd                  # -1: there is no socket
    cdef readonly Outbox outbox
    cdef public bint queued             # in the list of channels to flush
    cdef public bint _blocked           # the socket takes no more at the moment
    cdef public bint _packs             # `packed_output` has what is sent
    cdef public bint _tells             # `drained` hears when everything is sent
    # Of a stream that another member opened.
    cdef public FrameReader reader      # None: the greeting is not over, or only `received` knows what may come
    cdef public uint64_t from_          # the member at the other end; 0 before its greeting
    cdef public bint took_part          # whether a frame came
    cdef readonly uint64_t received_bytes
    cdef PeerPath _path

    cdef bint is_taking(self)
    cdef int mark(self) except -1
    cdef int read_once(self) except -1
    cdef int take_frames(self, const uint8_t* data, size_t n) except -1
    cdef int send_all(self) except -1
    cdef int send_some(self, Outbox outbox) except? -1
