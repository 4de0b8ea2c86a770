"""What all members can do: this module knows the cluster's operation level, the codecs that all can read, and the
longest key that all can store."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .._core.op import LEVEL
from ..codecs import BUILT_IN_FLAG, Snappy

if TYPE_CHECKING:
    from .._core.codec import PayloadCodec
    from .._core.kv_server import KVServer
    from ..peers.handshake import PeerIdentity
    from ..ports import Codec

log = logging.getLogger("metastore.members")


class CommonCodecs:
    """The codecs that all members say they can read. Any thread may ask; only the loop's thread changes them."""

    def __init__(self) -> None:
        #: (flag byte, name) of each codec that all other members can read; None if there are no other members.
        self.known: frozenset[tuple[int, str]] | None = None

    def readable(self, codec: Codec) -> bool:
        """Whether all members have said that they can read data that this codec compressed."""
        known = self.known
        return known is None or codec.flag == BUILT_IN_FLAG or (codec.flag, codec.name) in known


class Abilities:
    """Makes this member log nothing that another member could not apply or read. It belongs to the loop's thread."""

    def __init__(self, kv: KVServer, codec: PayloadCodec, common: CommonCodecs) -> None:
        self._kv = kv
        self._own_max_key = kv.max_logged_key
        self._codec = codec
        self._configured = codec.codec
        self._common = common

    def update(self, others: Iterable[PeerIdentity | None]) -> None:
        """`others` has the last description that each other member gave of itself; None for a member that gave none."""
        identities = list(others)
        # A member that gave no description may run the first version of the program.
        self._kv.cluster_level = min([LEVEL, *(1 if one is None else one.level for one in identities)])
        codecs = [frozenset(() if one is None else one.codecs) for one in identities]
        self._common.known = frozenset.intersection(*codecs) if codecs else None
        self._choose_codec()
        self._bound_keys(one for one in identities if one is not None)

    def _bound_keys(self, others: Iterable[PeerIdentity]) -> None:
        """Logs no key that a member cannot store: that member would have to stop when it applies the entry. What is
        only read concerns this member alone.

        Of a member that gave no description nothing is known. It counts as one without a limit, for else one lost
        member would forbid all keys.
        """
        kv = self._kv
        limits = [size for size in (self._own_max_key, *(one.max_key for one in others)) if size]
        least = min(limits, default=0)
        if least != kv.max_logged_key:
            log.warning("keys of %s are written from now on: limits.max_key_bytes is not the same on all members",
                        f"up to {least} bytes" if least else "any length")  # fmt: skip
            kv.max_logged_key = least

    def _choose_codec(self) -> None:
        """Uses the codec that the configuration names, or snappy until all members can read that one."""
        configured, codec = self._configured, self._codec
        if configured is None:
            return
        usable = self._common.readable(configured)
        if usable and codec.codec is not configured:
            log.info("performance.compression_codec: all members can read %r, it is used", configured.name)
            codec.use(configured)
        elif not usable and codec.codec is configured:
            log.warning(
                "performance.compression_codec: not all members have said that they can read %r: snappy is used until "
                "they have", configured.name,
            )  # fmt: skip
            codec.use(Snappy())
