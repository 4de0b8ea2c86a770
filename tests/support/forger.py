"""What a stranger can send to the peer ports of a running cluster, in the names of its members.

It sends everything that must end at the connection: greetings and frames that are cut, mangled and stretched, messages
with numbers that no member has, and bytes that are no operations. It leaves out what a real member could have sent and
be wrong about (a second vote, an entry that is committed elsewhere, an index that it does not have), because Raft
trusts its members.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from metastore._core.batch import frame
from metastore._core.driver_path import MAX_TERM
from metastore._core.entry import Entry, encode_entry
from metastore._core.op import encode_op
from metastore._core.raft_types import ConfState, Message, MessageType, Snapshot
from metastore._core.raft_wire import HEADER, MAX_FRAME, REFUSALS, Outbox
from metastore.peers import handshake as hs
from metastore.peers.packing import Packer
from metastore.peers.stream import PACKED, PING, PONG, ROSTER_RECORD
from metastore.snapshots import transfer

T = MessageType
#: Numbers at the ends of their ranges.
EXTREMES = (0, 1, 2, 255, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 2, (1 << 64) - 1)
HELD = 200  # connections that are kept open at a time
CROWD = 500  # silent connections to one member: twice as many as it accepts
STRANGERS = 40  # more processes that no roster knows than a member takes in
SWOLLEN = 64 << 20  # bytes of a greeting or frame that is longer than it may be
#: A member could be wrong about the other answers, so only refusals are forged.
GRANTS = (T.MsgVoteResp, T.MsgPreVoteResp)


def ask(address: str, hello: bytes, timeout: float = 5.0) -> tuple[socket.socket, hs.Answer]:
    """Send a hello. Return the connection and the answer. Raises OSError, FormatError."""
    host, _, port = address.rpartition(":")
    sock = socket.create_connection((host, int(port)), timeout)
    data = b""
    while (size := hs.greeting_size(data)) is None or len(data) < size:
        more = sock.recv(hs.HEADER - len(data) if size is None else size - len(data))
        if not data and not more:
            raise ConnectionResetError("no answer")
        data += more
        if not more:
            raise ConnectionResetError("half an answer")
    return sock, hs.decode_answer(data)


def ended(sock: socket.socket) -> bool:
    """Whether the other side has closed a connection. Reads what it sent before."""
    sock.setblocking(False)
    try:
        while sock.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


#: An address, who listens there, and in whose name to greet.
Pair = tuple[str, hs.PeerIdentity, hs.PeerIdentity]


class Forger:
    """Attacks members that listen at `addresses` (host:port) of a cluster. All randomness comes from `seed`."""

    def __init__(self, addresses: Sequence[str], cluster_id: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.addresses = list(addresses)
        self.cluster_id = cluster_id
        self.members: dict[str, hs.PeerIdentity] = {}
        self.term = 1
        self.sent = self.refused = self.greeted = 0
        self._held: list[socket.socket] = []
        self._crowd: list[socket.socket] = []
        self.attacks: list[Callable[[], None]] = [
            self.garbage, self.mangled_greeting, self.stretched_greeting, self.forged_greeting, self.roster,
            self.mangled_frame, self.stretched_frame, self.cut_frame, self.message, self.message, self.entries,
            self.forward, self.forward, self.refusal, self.blob, self.snapshot,
            self.packed,
        ]  # fmt: skip

    # ---- the members

    def learn(self, targets: dict[str, int]) -> None:
        """Ask each member who it is, as a stranger. `targets` are their ids by address."""
        for address, ident in targets.items():
            stranger = hs.PeerIdentity(self.cluster_id, 1, 0xBAD, "nobody", places=("127.0.0.1:9",), life=7)
            data = hs.encode_hello(hs.Hello(hs.CONTROL, stranger, ident))
            host, _, port = address.rpartition(":")
            with socket.create_connection((host, int(port)), 5) as sock:
                sock.sendall(data)
                roster = b""
                while (size := hs.greeting_size(roster)) is None or len(roster) < size:
                    roster += sock.recv(1 << 16)
            answer = hs.decode_answer(roster[:size])
            assert answer.status == hs.OK, answer.text
            self.members[address] = answer.sender

    def pair(self) -> Pair:
        """Return (address, the member there, the member whose name is used)."""
        address = self.random.choice(self.addresses)
        target = self.members[address]
        sender = self.random.choice([one for one in self.members.values() if one is not target])
        chance = self.random.random()
        if chance < 0.1:
            sender = replace(sender, member_id=self.random.randrange(1, 100) << 50, name="nobody")
        elif chance < 0.13:
            sender = target
        return address, target, sender

    # ---- sending

    def run(self, seconds: float) -> None:
        """Attack for some seconds. Begin with more than one member may take in, and the last term for each."""
        self.hang_up(self._crowd)
        address = self.random.choice(self.addresses)
        self.swollen(address)
        self.strangers(address)
        self.crowd(address)
        self.last_terms()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.step()

    def step(self) -> None:
        """Make one attack. The other side should end the connection."""
        with contextlib.suppress(OSError):
            self.random.choice(self.attacks)()

    def throw(self, address: str, data: bytes, hold: bool = False) -> None:
        """Send bytes as the first of a connection."""
        host, _, port = address.rpartition(":")
        sock = socket.create_connection((host, int(port)), 5)
        sock.settimeout(2)
        self.sent += 1
        try:
            sock.sendall(data)
        finally:
            if hold or self.random.random() < 0.1:
                self._keep(sock)
            else:
                self._look(sock)

    def _look(self, sock: socket.socket) -> None:
        """Read for a moment, and close the connection: in order, or in the middle."""
        with sock, contextlib.suppress(OSError):
            sock.settimeout(0.02)
            if self.random.random() < 0.5:
                sock.recv(4096)
            if self.random.random() < 0.3:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def strangers(self, address: str) -> None:
        """Greet a member as many that no roster knows, and stay."""
        for number in range(STRANGERS):
            with contextlib.suppress(OSError):
                self.as_member(b"", hs.CONTROL, self.nobody(address, number), hold=True)

    def nobody(self, address: str, number: int) -> Pair:
        """A member, in the name of a process that no roster knows."""
        target = self.members[address]
        who = replace(target, member_id=(number + 1) << 40, name="nobody", incarnation="x", life=number + 1)
        return address, target, who

    def swollen(self, address: str) -> None:
        """Send greetings and frames that are longer than they may be, as their headers say, and stay."""
        greeting = self.greeting()[:12] + struct.pack("<I", 1 << 30) + bytes(SWOLLEN // 2)
        for _ in range(4):
            with contextlib.suppress(OSError):
                self.throw(address, greeting, hold=True)
        start = struct.pack("<IIIB3x", 0, 4 * SWOLLEN, 84, 1)
        frame = start + struct.pack("<I", zlib.crc32(start)) + bytes(SWOLLEN)
        for number in (STRANGERS, STRANGERS + 1):
            with contextlib.suppress(OSError):
                self.as_member(frame, hs.CONTROL, self.nobody(address, number), hold=True)

    def crowd(self, address: str) -> None:
        """Open many connections to one member that send nothing or half a greeting, and stay."""
        host, _, port = address.rpartition(":")
        half = self.greeting()[:-1]
        for number in range(CROWD):
            with contextlib.suppress(OSError):
                sock = socket.create_connection((host, int(port)), 5)
                self._crowd.append(sock)
                sock.sendall(half if number % 2 else b"")

    def last_terms(self) -> None:
        """Send each member a heartbeat of a term after which there could be no election, in another member's name."""
        for address, target in self.members.items():
            sender = self.random.choice([one for one in self.members.values() if one is not target])
            outbox = Outbox()
            term = self.random.choice((MAX_TERM + 1, (1 << 64) - 1))
            outbox.add(Message(T.MsgHeartbeat, target.member_id, sender.member_id, term))
            with contextlib.suppress(OSError):
                self.as_member(
                    b"".join(bytes(piece) for piece in outbox.pieces()), hs.CONTROL, (address, target, sender)
                )

    @property
    def crowd_left(self) -> int:
        """How many connections of the crowd the member has not closed."""
        return sum(not ended(sock) for sock in self._crowd)

    @staticmethod
    def hang_up(socks: list[socket.socket]) -> None:
        """Close all of `socks` and forget them."""
        for sock in socks:
            sock.close()
        socks.clear()

    def _keep(self, sock: socket.socket) -> None:
        self._held.append(sock)
        if len(self._held) > HELD:
            self._held.pop(self.random.randrange(HELD)).close()

    def as_member(self, data: bytes, kind: int | None = None, pair: Pair | None = None, hold: bool = False) -> None:
        """Greet as a member, and send bytes once the greeting is accepted. `pair`: where, and in whose name."""
        address, target, sender = pair or self.pair()
        if kind is None:
            kind = self.random.choice((hs.CONTROL, hs.BULK))
        host, _, port = address.rpartition(":")
        sock = socket.create_connection((host, int(port)), 5)
        sock.settimeout(2)
        self.sent += 1
        with contextlib.ExitStack() as stack:
            stack.callback(sock.close)
            sock.sendall(hs.encode_hello(hs.Hello(kind, sender, target.member_id)))
            answer = b""
            while (size := hs.greeting_size(answer)) is None or len(answer) < size:
                more = sock.recv(4096)
                if not more:
                    return
                answer += more
            if hs.decode_answer(answer[:size]).status != hs.OK:
                self.refused += 1
                return
            self.greeted += 1
            for at in range(0, len(data), 1 << 16):
                sock.sendall(data[at : at + (1 << 16)])
            stack.pop_all()
        self._look(sock) if not hold and self.random.random() < 0.8 else self._keep(sock)

    def mangle(self, data: bytes) -> bytes:
        """Change, remove or insert a few bytes."""
        out = bytearray(data)
        for _ in range(self.random.choice((1, 1, 2, 8))):
            at = self.random.randrange(len(out) + 1)
            what = self.random.random()
            if what < 0.6 and at < len(out):
                out[at] = self.random.choice((0, 255, out[at] ^ (1 << self.random.randrange(8))))
            elif what < 0.8:
                del out[at : at + self.random.choice((1, 4, 100))]
            else:
                out[at:at] = self.random.randbytes(self.random.choice((1, 4, 100)))
        return bytes(out)

    def number(self) -> int:
        """Return some number of 64 bits."""
        return self.random.choice(EXTREMES) if self.random.random() < 0.7 else self.random.getrandbits(64)

    # ---- greetings

    def greeting(self) -> bytes:
        """Return a good hello in a member's name."""
        _, target, sender = self.pair()
        return hs.encode_hello(hs.Hello(self.random.choice(list(hs.KINDS)), sender, target.member_id))

    @staticmethod
    def summed(data: bytes) -> bytes:
        """Correct the sums of a greeting, whatever it says."""
        if len(data) < hs.HEADER:
            return data
        return data[:16] + struct.pack("<I", zlib.crc32(data[hs.HEADER :], zlib.crc32(data[8:16]))) + data[20:]

    def garbage(self) -> None:
        """Send bytes of another protocol."""
        choices = (b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00", b"")
        data = self.random.choice((*choices, hs.MAGIC, self.random.randbytes(self.random.randrange(70_000))))
        self.throw(self.random.choice(self.addresses), data)

    def mangled_greeting(self) -> None:
        """Send a hello with wrong bytes, with or without the right sums."""
        data = self.mangle(self.greeting())
        self.throw(self.random.choice(self.addresses), self.summed(data) if self.random.random() < 0.7 else data)

    def stretched_greeting(self) -> None:
        """Send lengths that differ from what follows."""
        data = self.greeting()
        size = self.random.choice((0, 1, hs.MAX_BODY, hs.MAX_BODY + 1, 1 << 31, (1 << 32) - 1))
        data = data[:12] + struct.pack("<I", size) + data[16:]
        if self.random.random() < 0.5:
            at = self.random.randrange(hs.HEADER, len(data) - 1)
            data = data[:at] + b"\xff\xff" + data[at + 2 :]
        self.throw(self.random.choice(self.addresses), self.summed(data), hold=self.random.random() < 0.5)

    def forged_greeting(self) -> None:
        """Send identities that are nearly those of a member."""
        address, target, sender = self.pair()
        some = self.random.choice
        fields: dict[str, object] = {}
        for _ in range(some((1, 1, 2))):
            fields |= some(
                (
                    {"incarnation": "x" * 64}, {"start": self.number()}, {"life": self.number()}, {"member_id": 77},
                    {"cluster_id": self.number() or 1}, {"token": self.number()}, {"level": 0xFFFF}, {"codecs": ()},
                    {"flags": self.random.randrange(8)}, {"name": "\x1b[2J\n" * 20}, {"software": "\u202e" * 20},
                    {"places": ("127.0.0.1:9", "[::1]:9", "nonsense", "a" * 240, "\0", "no-such-host.invalid:1")},
                )
            )  # fmt: skip
        kind = some(list(hs.KINDS))
        to = target.member_id if self.random.random() < 0.8 else self.number()
        self.throw(address, hs.encode_hello(hs.Hello(kind, replace(sender, **fields), to)))  # type: ignore[arg-type]

    def roster(self) -> None:
        """Ask for the roster, and read nothing of it."""
        self.throw(self.random.choice(self.addresses), hs.encode_hello(hs.Hello(hs.ROSTER, hs.NOBODY, 0)), hold=True)

    # ---- frames

    def framed(self, kind: int, body: bytes, head: int | None = None) -> bytes:
        """Return a frame with the right sums."""
        head = len(body) if head is None else head
        start = struct.pack("<IIIB3x", zlib.crc32(body[:head]), len(body), head, kind)
        return start + struct.pack("<I", zlib.crc32(start)) + body

    def good_frame(self) -> bytes:
        """Return a frame that a member could send."""
        outbox = Outbox()
        _, target, sender = self.pair()
        outbox.add(Message(T.MsgHeartbeatResp, target.member_id, sender.member_id, 1, context=b"12345678"))
        outbox.add_refusal(1, [self.number()])
        outbox.add_forward(frame([encode_op(1, 1, b"x")]))
        outbox.add_blob(PONG, b"")
        return b"".join(bytes(piece) for piece in outbox.pieces())

    def mangled_frame(self) -> None:
        """Send wrong bytes between frames."""
        data = self.good_frame()
        if self.random.random() < 0.5:
            body = self.mangle(data[HEADER : HEADER + 120])
            data = self.framed(self.random.randrange(6), body or b"x")
        else:
            data = self.mangle(data)
        self.as_member(data)

    def stretched_frame(self) -> None:
        """Send headers with the right sum that announce more than there is, or than may be."""
        some = self.random.choice
        start = struct.pack(
            "<IIIB3x", 0, some((0, 1, MAX_FRAME, MAX_FRAME + 1, (1 << 32) - 1)),
            some((0, 1, MAX_FRAME, (1 << 32) - 1)), some((0, 1, 2, 3, 4, 5, 255)),
        )  # fmt: skip
        self.as_member(start + struct.pack("<I", zlib.crc32(start)) + bytes(self.random.randrange(5000)))

    def cut_frame(self) -> None:
        """Send the beginning of a frame, and nothing more."""
        data = self.good_frame()
        self.as_member(data[: self.random.randrange(len(data))])

    def message(self) -> None:
        """Send a Raft message with numbers that no member has."""
        _, target, sender = self.pair()
        kind = self.random.choice(list(T))
        message = Message(kind, target.member_id, sender.member_id, self.random.choice((self.term, self.number())))
        message.log_term, message.vote = self.number(), self.number()
        message.index, message.reject_hint = self.far(), self.number()
        message.commit = self.far() if kind in (T.MsgApp, T.MsgHeartbeat) else self.number()
        message.reject = kind in GRANTS or self.random.random() < 0.5
        message.context = self.random.choice((b"", b"doubt", self.random.randbytes(8), bytes(100_000)))
        if self.random.random() < 0.1:
            message.from_ = self.number()
        if kind == T.MsgSnap:
            voters = tuple(sorted({self.number() or 1 for _ in range(3)}))
            message.snapshot = Snapshot(self.number(), self.number(), ConfState(voters))
        outbox = Outbox()
        if not outbox.add(message):
            self.as_member(self.framed(1, bytes([1, kind, message.reject, 0]) + self.random.randbytes(80)))
            return
        self.as_member(b"".join(bytes(piece) for piece in outbox.pieces()))

    def far(self) -> int:
        """Return an index that no log has, or 0. A member could believe an index that exists."""
        return self.random.choice((0, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 2, (1 << 64) - 1))

    def entries(self) -> None:
        """Send an append behind an entry that no log has, whole or mangled."""
        _, target, sender = self.pair()
        at, term = self.far() or 1 << 40, self.random.choice((1, self.term))
        index = (at + 1) & ((1 << 64) - 1)
        image = encode_entry(Entry(term, index, 0, self.random.randbytes(self.random.choice((0, 10, 5000)))))
        message = Message(T.MsgApp, target.member_id, sender.member_id, term, term, at, images=image)
        outbox = Outbox()
        if not outbox.add(message):
            return
        data = b"".join(bytes(piece) for piece in outbox.pieces())
        if self.random.random() < 0.5:
            wrong = self.mangle(data[HEADER + 84 :])
            body = data[HEADER : HEADER + 12] + struct.pack("<Q", len(wrong)) + data[HEADER + 20 : HEADER + 84] + wrong
            data = self.framed(1, body, 84)
        self.as_member(data, hs.BULK)

    def forward(self) -> None:
        """Send bytes that are no operations, or operations that nobody may ask for."""
        some = self.random.choice
        requests = (
            b"", b"{}", b"\xff" * 20, b"[" * 50_000, b'{"version":1,"action":"add","member":{}}',
            b'{"version":1,"action":"update","member":{"id":7,"name":"","peer_urls":["http://["],"client_urls":[],'
            b'"is_learner":false,"incarnation":""}}',
            b'{"version":1,"action":"publish","member":{"id":7,"name":"\\ud800","peer_urls":[],"client_urls":["' +
            b"u" * 5000 + b'"],"is_learner":false,"incarnation":""}}',
            b'{"version":1,"action":"restate","member":{"id":7,"name":"","peer_urls":[],"client_urls":[],'
            b'"is_learner":false,"incarnation":""},"roster":{}}',
            self.random.randbytes(some((1, 50, 2000))),
        )  # fmt: skip
        operations = [encode_op(some((1, 2, 3, 4, 5, 6)), self.number(), some(requests)) for _ in range(some((1, 3)))]
        data = frame(operations)
        if self.random.random() < 0.5:
            data = self.mangle(data)
        self.as_member(self.framed(2, data or b"x"), hs.BULK)

    def refusal(self) -> None:
        """Send refusals of operations that nobody forwarded."""
        codes = (0, len(REFUSALS) - 1, len(REFUSALS), 0xFFFF)
        body = struct.pack("<HH", self.random.choice(codes), self.random.choice((0, 0, 1)))
        self.as_member(self.framed(3, body + self.random.randbytes(self.random.choice((0, 8, 7, 80_000)))))

    def blob(self) -> None:
        """Send blobs where none belong."""
        tag = self.random.choice((0, 1, PING, PONG, ROSTER_RECORD, 255))
        self.as_member(self.framed(4, bytes([tag]) + self.random.randbytes(self.random.choice((0, 100, 100_000)))))

    def packed(self) -> None:
        """Send packed frames: good ones, mangled ones, and pieces that unpack to more than they may."""
        packer, out = Packer(), b""
        for _ in range(self.random.choice((1, 3))):
            inner = self.random.choice((self.good_frame(), self.framed(4, bytes([PACKED]) + b"nested"), bytes(200_000)))
            pieces = [packer.pack([inner])[0] for _ in range(self.random.choice((1, 1, 4)))]
            body = b"".join(pieces)
            out += self.framed(4, bytes([PACKED]) + (self.mangle(body) if self.random.random() < 0.3 else body))
        self.as_member(out, hs.BULK)

    def snapshot(self) -> None:
        """Send a snapshot stream with pieces out of place."""
        tags = (transfer.BEGIN, transfer.PART, transfer.CHUNK, transfer.TRAILER, transfer.WANT, 99)
        out = b""
        for _ in range(self.random.choice((1, 2, 5))):
            size = self.random.choice((0, 10, 300, 70_000))
            out += self.framed(4, bytes([self.random.choice(tags)]) + self.random.randbytes(size))
        self.as_member(out, hs.SNAPSHOT)

    def close(self) -> None:
        """Close all connections."""
        self.hang_up(self._held)
        self.hang_up(self._crowd)
