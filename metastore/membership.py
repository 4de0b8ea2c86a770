"""Who the members are: ids, the record of a data directory, and the member list.

Ids are computed once, when a data directory is made, and kept: a member may later change its name or address and
stays the same member. The incarnation is drawn anew for every data directory, so that a wiped directory is not
taken for the member it was. Format: FORMATS.md, "Identity".
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from . import errors

VERSION = 1


@dataclass(frozen=True, slots=True)
class Member:
    """One member as the Cluster API shows it. `id` is 64 bits and never 0; URLs carry their scheme."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    is_learner: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """What a data directory is: whose, of which cluster, and with which members it began."""

    cluster_id: int
    member_id: int
    incarnation: str
    members: tuple[Member, ...]

    @classmethod
    def create(cls, name: str, token: str, initial: dict[str, str], incarnation: str) -> Identity:
        """Identity of a new data directory.

        `initial` maps names to peer addresses (host:port); `name` must be one of them. `incarnation` is a random
        string of the caller's. Raises ConfigError.
        """
        if name not in initial:
            raise errors.ConfigError(f"cluster.initial names {', '.join(sorted(initial))}, but not node.name {name!r}")
        roster = "\n".join(f"{who}={where}" for who, where in sorted(initial.items()))
        members = tuple(
            Member(_number("member", token, who, where), who, (f"http://{where}",), ())
            for who, where in sorted(initial.items())
        )
        own = next(member.id for member in members if member.name == name)
        return cls(_number("cluster", token, roster), own, incarnation, members)

    def encode(self) -> bytes:
        """The record as it stands in the log's segments: JSON with a version, as UTF-8."""
        return json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> Identity:
        """Inverse of `encode`; raises FormatError."""
        try:
            record = json.loads(data)
            if record["version"] != VERSION:
                raise errors.FormatError(f"identity record has version {record['version']}, this program reads {VERSION}")
            members = tuple(
                Member(m["id"], m["name"], tuple(m["peer_urls"]), tuple(m["client_urls"]), m["is_learner"])
                for m in record["members"]
            )
            return cls(record["cluster_id"], record["member_id"], record["incarnation"], members)
        except (ValueError, KeyError, TypeError) as error:
            raise errors.FormatError(f"identity record cannot be read: {error}") from error


def _number(*parts: str) -> int:
    """A 64-bit id that is not 0 from the parts; the length before each keeps ("a","bc") apart from ("ab","c")."""
    digest = hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") or 1
