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
from . import handshake as hs
from .stream import ROSTER_RECORD

log = logging.getLogger("metastore.join")

VERSION = 1
ASK_TIMEOUT = 2.0  # seconds for one member to answer
PATIENCE = 10.0  # seconds for all members: the one that can answer may be starting, or may not have applied the change
PAUSE = 0.2  # seconds between rounds
LOOK_EVERY = 0.05  # seconds after which a stop is noticed
TELL_EVERY = 2.0  # seconds between lines about what is waited for
MAX_RECORD = 16 * 1024 * 1024  # bytes; members and URLs are bounded where they are added, older ones were not


@dataclass(frozen=True, slots=True)
class Told:
    """The roster as one member tells it: the cluster, the members that began it, and the present members."""

    cluster_id: int
    members: tuple[Member, ...]
    contacts: tuple[Member, ...]


def roster_record(identity: Identity, roster: Roster) -> bytes:
    """Encodes what a member tells one that joins or is in doubt: the cluster, its first members and its
    present members.
    """
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


def read_record(data: bytes) -> Told:
    """Inverse of `roster_record`. Raises FormatError."""
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
    return Told(cluster_id, members, contacts)


def join_unless(
    stopping: threading.Event, addresses: Iterable[str], name: str, token: str, peer_address: str, incarnation: str
) -> Identity:
    """What `join` gives, or errors.Stopped soon after `stopping` was set: a name server or a member that does not
    answer must not hold up a stop."""
    outcome: list[Identity | BaseException] = []
    over = threading.Event()

    def work() -> None:
        try:
            outcome.append(join(addresses, name, token, peer_address, incarnation, stopping.wait))
        except BaseException as error:  # noqa: BLE001 - carried to who asked, whatever it is
            outcome.append(error)
        over.set()

    threading.Thread(target=work, name="join", daemon=True).start()
    while not over.wait(LOOK_EVERY):
        if stopping.is_set():
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
    two rounds; when it returns something true nobody waits for the outcome any more. Raises ConfigError when nobody
    answers, nobody knows us, or the members at the addresses are not of one cluster; Stopped.
    """
    others = [address for address in addresses if address != peer_address]
    if not others:
        raise errors.ConfigError('cluster.initial: with cluster.state "existing" it must name a member that is there')
    log.info("joining: looking for the member with the peer URL http://%s; asking %s", peer_address, ", ".join(others))
    began = told_at = time.monotonic()
    while True:
        reasons, found = {}, {}
        for address in others:
            try:
                found[address] = _ask(address)
            except (OSError, errors.FormatError, errors.ConfigError) as error:
                reasons[address] = str(error)
        if len({told.cluster_id for told in found.values()}) > 1:
            raise errors.ConfigError("cluster.initial names members of several clusters: " + ", ".join(
                f"{address} is of {told.cluster_id:016x}" for address, told in found.items()))  # fmt: skip
        for address, told in found.items():
            try:
                return _identity(told, name, token, peer_address, incarnation)
            except errors.ConfigError as error:
                reasons[address] = str(error)
        now = time.monotonic()
        why = "; ".join(f"{address}: {reasons[address]}" for address in others)
        if now >= began + PATIENCE:
            raise errors.ConfigError(f"cannot join the cluster: {why}")
        if now >= told_at + TELL_EVERY:
            told_at = now
            log.info("joining: asking again for %.0f s (%s)", began + PATIENCE - now, why)
        if pause(PAUSE):
            raise errors.Stopped()


def _ask(address: str) -> Told:
    """Returns what the member at `address` tells. Raises OSError, FormatError, ConfigError."""
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


def _identity(told: Told, name: str, token: str, peer_address: str, incarnation: str) -> Identity:
    ours = [member for member in told.contacts if f"http://{peer_address}" in member.peer_urls]
    if not ours:
        raise errors.ConfigError(f"no member has the peer URL http://{peer_address}; add it first (member add)")
    own = ours[0]
    if own.incarnation:
        raise errors.ConfigError(
            f"member {own.id:016x} at http://{peer_address} has joined before with another data directory; "
            "remove it and add it anew"
        )
    log.info(
        "joining cluster %016x as %s (%016x)%s; members: %s", told.cluster_id, name, own.id,
        ", a learner" if own.is_learner else "",
        ", ".join(f"{member.name or format(member.id, '016x')} at {' '.join(member.peer_urls)}"
                  for member in told.contacts if member is not own),
    )  # fmt: skip
    return Identity(told.cluster_id, own.id, incarnation, told.members, told.contacts, name, token_number(token))
