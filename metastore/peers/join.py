"""Joining an existing cluster: the new member asks the running members for the roster and finds its own record in it.

An operator has added the new member before (`etcdctl member add`), so one record in the roster has our peer URL. Any
member that has applied the addition can answer. The first member asked may be down, or may not have applied it yet, so
others are asked too. As in etcd, the cluster's token is not required, because `member add` does not print it. The ids
of the cluster must agree instead.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from .. import errors
from .._core.raft_wire import Blob, FrameReader
from ..net.accept import host_and_port
from ..replica.roster import Identity, Member, Roster, token_number
from ..threads import Gate, begin
from . import handshake as hs
from .stream import ROSTER_RECORD

log = logging.getLogger("metastore.join")

VERSION = 1
ASK_TIMEOUT = 2.0  # seconds for one member to answer
PATIENCE = 10.0  # seconds for all members; the only one that can answer may be starting, or be behind in its log
PAUSE = 0.2  # seconds between rounds
LOOK_EVERY = 0.05  # seconds after which a stop is noticed
LOG_EVERY = 2.0  # seconds between log lines that say why the member waits
MAX_RECORD = 16 * 1024 * 1024  # bytes; members and URLs have bounds when they are added, but had none in early versions


@dataclass(frozen=True, slots=True)
class PeerRoster:
    """The roster of one member: the cluster, the members that began it, and the present members."""

    cluster_id: int
    members: tuple[Member, ...]
    contacts: tuple[Member, ...]


def roster_record(identity: Identity, roster: Roster) -> bytes:
    """Encodes the roster for a member that joins, or that asks: the cluster, its first and its present members."""
    return json.dumps(
        {
            "version": VERSION,
            "cluster_id": identity.cluster_id,
            "members": [asdict(member) for member in identity.members],
            "contacts": [asdict(member) for _, member in sorted(roster.members.items())],
        },
        sort_keys=True,
        separators=(",", ":"),
    ).encode()


def read_record(data: bytes) -> PeerRoster:
    """The inverse of `roster_record`. Raises FormatError."""
    try:
        record = json.loads(data)
        if record["version"] != VERSION:
            raise ValueError(f"version {record['version']!r}, this program reads {VERSION}")
        members, contacts = (
            tuple(Member.from_record(member) for member in record[key]) for key in ("members", "contacts")
        )
        cluster_id = int(record["cluster_id"])
        if not 0 < cluster_id < 1 << 64 or not all(0 < member.id < 1 << 64 for member in (*members, *contacts)):
            raise ValueError("an id that is none")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise errors.FormatError(f"its roster cannot be read: {hs.clip(str(error))}") from error
    return PeerRoster(cluster_id, members, contacts)


def join_unless(
    stopping: Gate, addresses: Iterable[str], name: str, token: str, peer_address: str, incarnation: str
) -> Identity:
    """Returns the result of `join`, but raises errors.Stopped soon after `stopping` was opened.

    A name server or a member that does not answer must not hold up a stop.
    """
    outcome: list[Identity | BaseException] = []
    over = threading.Event()

    def work() -> None:
        try:
            outcome.append(join(addresses, name, token, peer_address, incarnation, stopping.wait))
        except BaseException as error:  # noqa: BLE001 - the calling thread raises it, whatever it is
            outcome.append(error)
        over.set()

    begin("join", work)
    while not over.wait(LOOK_EVERY):
        if stopping.is_open():
            raise errors.Stopped()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def join(
    addresses: Iterable[str], name: str, token: str, peer_address: str, incarnation: str,
    pause: Callable[[float], object] = time.sleep,
) -> Identity:  # fmt: skip
    """The identity of a new data directory in the cluster whose members listen at `addresses` (host:port).

    `peer_address` is where the others will dial us, as it was given when we were added. `pause(seconds)` waits between
    two rounds; if it returns something true, no caller waits for the outcome any more, and Stopped is raised. Raises
    ConfigError if no member answers, no member knows us, or the members belong to different clusters.
    """
    others = [address for address in addresses if address != peer_address]
    if not others:
        raise errors.ConfigError('cluster.initial: with cluster.state "existing" it must name a member that is there')
    log.info("joining: looking for the member with the peer URL http://%s; asking %s", peer_address, ", ".join(others))
    began = logged_at = time.monotonic()
    while True:
        reasons, rosters = {}, {}
        for address in others:
            try:
                rosters[address] = _ask(address)
            except (OSError, errors.FormatError, errors.ConfigError) as error:
                reasons[address] = str(error)
        if len({roster.cluster_id for roster in rosters.values()}) > 1:
            raise errors.ConfigError("cluster.initial names members of several clusters: " + ", ".join(
                f"{address} is of {roster.cluster_id:016x}" for address, roster in rosters.items()))  # fmt: skip
        for address, roster in rosters.items():
            try:
                return _identity(roster, name, token, peer_address, incarnation)
            except errors.ConfigError as error:
                reasons[address] = str(error)
        now = time.monotonic()
        why = "; ".join(f"{address}: {reasons[address]}" for address in others)
        if now >= began + PATIENCE:
            raise errors.ConfigError(f"cannot join the cluster: {why}")
        if now >= logged_at + LOG_EVERY:
            logged_at = now
            log.info("joining: asking again for %.0f s (%s)", began + PATIENCE - now, why)
        if pause(PAUSE):
            raise errors.Stopped()


def _ask(address: str) -> PeerRoster:
    """Returns the roster of the member at `address`. Raises OSError, FormatError, ConfigError."""
    with socket.create_connection(host_and_port(address), ASK_TIMEOUT) as sock:
        sock.settimeout(ASK_TIMEOUT)
        # The ids in this hello are placeholders, because we have no ids yet.
        sock.sendall(hs.encode_hello(hs.Hello(hs.ROSTER, hs.NOBODY, 0)))
        data = b""
        while (size := hs.greeting_size(data)) is None or len(data) < size:
            data += _more(sock)
        answer = hs.decode_answer(data[:size])
        if answer.status != hs.TOLD:
            raise errors.ConfigError(hs.clip(answer.text) or f"refused with status {answer.status}")
        return read_record(_record(sock, data[size:]))


def _record(sock: socket.socket, data: bytes) -> bytes:
    reader = FrameReader(MAX_RECORD)
    until = time.monotonic() + ASK_TIMEOUT
    while not (items := reader.feed(data, len(data))):
        if time.monotonic() > until:
            raise errors.FormatError("its roster does not come to an end")
        data = _more(sock)
    if not isinstance(items[0], Blob) or items[0].tag != ROSTER_RECORD:
        raise errors.FormatError("what it sent is no roster")
    return items[0].data


def _more(sock: socket.socket) -> bytes:
    more = sock.recv(64 * 1024)
    if not more:
        raise errors.FormatError("closed the connection instead of answering")
    return more


def _identity(roster: PeerRoster, name: str, token: str, peer_address: str, incarnation: str) -> Identity:
    ours = [member for member in roster.contacts if f"http://{peer_address}" in member.peer_urls]
    if not ours:
        raise errors.ConfigError(f"no member has the peer URL http://{peer_address}; add it first (member add)")
    own = ours[0]
    if own.incarnation:
        raise errors.ConfigError(
            f"member {own.id:016x} at http://{peer_address} has joined before with another data directory; "
            "remove it and add it anew"
        )
    log.info(
        "joining cluster %016x as %s (%016x)%s; members: %s", roster.cluster_id, name, own.id,
        ", a learner" if own.is_learner else "",
        ", ".join(f"{member.name or format(member.id, '016x')} at {' '.join(member.peer_urls)}"
                  for member in roster.contacts if member is not own),
    )  # fmt: skip
    return Identity(roster.cluster_id, own.id, incarnation, roster.members, roster.contacts, name, token_number(token))
