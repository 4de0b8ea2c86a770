"""The ordinary way of a message between members: from the socket to the node, and from there to the sockets."""

from typing import Any

from metastore._core.raft_types import Message
from metastore._core.raft_wire import FrameReader, Outbox

# The states of a stream.
WAITING: int
CONNECTING: int
GREETING: int
OPEN: int
CLOSED: int

class PeerPath:
    """The compiled half of a transport: queues what goes to the members, and writes it. A subclass has the rare half:
    `first_frame(channel)` hears of the first frame on a stream, `other_frame(channel, frame)` of each that is neither a
    message nor a forward. All calls come from the loop's thread."""

    handler: Any
    failpoints: Any
    dirty: list[Any]
    strays: int
    _unreachable: set[int]
    _peers: Any

    def __init__(self, peers: dict[int, Any], handler: Any, failpoints: Any, recv_size: int, send_size: int) -> None:
        """`peers` has the `control` and the `bulk` stream of each member. One read takes at most `recv_size` bytes. One
        write has one piece of output, and more up to `send_size` bytes."""

    def send(self, messages: list[Message]) -> None:
        """Queues Raft messages and never blocks. Messages that cannot be queued are dropped and reported at the next
        `flush`."""

    def forward(self, to: int, frame: bytes) -> bool:
        """Queues raw operations for the leader.

        Returns False if the operations were not taken, because there is no connection or no room; then they are surely
        never sent. Operations that were taken may still be lost with the connection; `on_unreachable` reports this."""

    def _queued(self, peer: Any, channel: PeerChannel, taken: bool) -> bool:
        """Notes that something was queued for a peer, or else that it is lost. Returns `taken`."""

    def flush(self) -> None:
        """Sends everything that was queued in this turn, in one write per stream, and reports what was dropped."""

class PeerChannel:
    """The compiled half of a stream. A subclass has the rare half: `other_event`, `received` for bytes as long as there
    is no `reader`, `unpacked` where frames may be packed, `packed_output`, `drained`, `pass_point`, `await_room` when
    the socket takes no more, `broken` with an error of the socket, `spoilt` with what received bytes have caused, and
    `fail`. All calls come from the loop's thread."""

    kind: int
    state: int
    fd: int
    queued: bool
    _blocked: bool
    _packs: bool
    _tells: bool
    reader: FrameReader | None
    from_: int
    took_part: bool

    def __init__(self, path: Any, kind: int, outbox: Outbox) -> None:
        """`path` is a PeerPath."""

    @property
    def outbox(self) -> Outbox: ...
    @property
    def received_bytes(self) -> int: ...
    @property
    def is_open(self) -> bool:
        """Whether both sides have greeted each other."""

    @property
    def takes(self) -> bool:
        """Whether messages may be queued, because the stream is open or about to be."""

    def queue(self) -> None:
        """Marks the outbox to be sent at the end of this turn."""

    def on_event(self, events: int) -> None:
        """The socket is ready for something."""

    def read(self) -> None:
        """Reads once: what does not fit comes in the next turn, after the other connections."""

    def take(self, data: bytes) -> None:
        """Takes bytes that came with the greeting, behind it. Raises FormatError, and the errors of the handler."""

    def flush(self) -> None:
        """Sends as much of the outbox as the socket takes."""
