"""Joining a cluster that is there: asking its members who they are, and which of them this one is to be.

The new member was added before (`etcdctl member add`), so one of the records has our peer URL. Any member that has it
applied can tell; they are asked one after the other, for the first may be down.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from . import errors
from . import handshake as hs
from .accept import split_address
from .membership import Identity, Member, Roster

log = logging.getLogger("metastore.join")

VERSION = 1
ASK_TIMEOUT = 2.0  # seconds for one member to answer
PATIENCE = 10.0  # seconds for all of them: the one who knows may be starting, or a change not applied yet
PAUSE = 0.2  # seconds between rounds


def roster_record(identity: Identity, roster: Roster) -> str:
    """What a member tells one that joins: the cluster, the members it began with, and those it has now."""
    return json.dumps(
        {
            "version": VERSION,
            "cluster_id": identity.cluster_id,
            "members": [asdict(member) for member in identity.members],
            "contacts": [asdict(member) for _, member in sorted(roster.members.items())],
        },
        sort_keys=True,
        separators=(",", ":"),
    )


def join(addresses: Iterable[str], token: str, peer_address: str, incarnation: str) -> Identity:
    """The identity of a new data directory in the cluster whose members listen at `addresses` (host:port).

    `peer_address` is where the others will dial us, as it was given when we were added. Raises ConfigError when nobody
    answers, or nobody knows us.
    """
    others = [address for address in addresses if address != peer_address]
    if not others:
        raise errors.ConfigError('cluster.initial: with cluster.state "existing" it must name a member that is there')
    until = time.monotonic() + PATIENCE
    while True:
        reasons = []
        for address in others:
            try:
                return _identity(_ask(address, token, incarnation), peer_address, incarnation)
            except (OSError, errors.FormatError, errors.ConfigError) as error:
                reasons.append(f"{address}: {error}")
        if time.monotonic() >= until:
            raise errors.ConfigError("cannot join the cluster: " + "; ".join(reasons))
        time.sleep(PAUSE)


def _ask(address: str, token: str, incarnation: str) -> dict[str, Any]:
    """The roster record of the member at `address`. Raises OSError, FormatError, ConfigError."""
    # Ids of nobody: we have none yet, and the hello's form does not allow 0.
    me = hs.PeerIdentity(1, token, 1, incarnation)
    with socket.create_connection(split_address(address), ASK_TIMEOUT) as sock:
        sock.settimeout(ASK_TIMEOUT)
        sock.sendall(hs.encode_hello(hs.Hello(hs.ROSTER, me, 0)))
        data = b""
        while (size := hs.greeting_size(data)) is None or len(data) < size:
            more = sock.recv(hs.MAX_BODY)
            if not more:
                raise errors.FormatError("closed the connection instead of answering")
            data += more
    answer = hs.decode_answer(data[:size])
    if answer.status != hs.TOLD:
        raise errors.ConfigError(answer.text or f"refused with status {answer.status}")
    with contextlib.suppress(ValueError, TypeError, KeyError):
        record = json.loads(answer.text)
        if record["version"] == VERSION:
            return dict(record)
    raise errors.FormatError("its roster cannot be read")


def _identity(record: dict[str, Any], peer_address: str, incarnation: str) -> Identity:
    try:
        members, contacts = (
            tuple(Member.from_record(member) for member in record[key]) for key in ("members", "contacts")
        )
        cluster_id = int(record["cluster_id"])
    except (ValueError, KeyError, TypeError) as error:
        raise errors.FormatError(f"its roster cannot be read: {error}") from error
    ours = [member for member in contacts if f"http://{peer_address}" in member.peer_urls]
    if not ours:
        raise errors.ConfigError(f"no member has the peer URL http://{peer_address}; add it first (member add)")
    if ours[0].incarnation:
        raise errors.ConfigError(
            f"member {ours[0].id:016x} at http://{peer_address} has joined before with another data directory; "
            "remove it and add it anew"
        )
    log.info("joining cluster %016x as member %016x", cluster_id, ours[0].id)
    return Identity(cluster_id, ours[0].id, incarnation, members, contacts)
