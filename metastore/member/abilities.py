"""What all members can do: the operation level of the cluster, and the codecs that every member can read."""

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
    """What all members have said that they can read. Any thread may ask; the loop's thread sets it."""

    def __init__(self) -> None:
        #: (flag byte, name) of the codecs that all other members can read; None: there are no others.
        self.known: frozenset[tuple[int, str]] | None = None

    def readable(self, codec: Codec) -> bool:
        """Whether all members have said that they can read what this codec compressed."""
        known = self.known
        return known is None or codec.flag == BUILT_IN_FLAG or (codec.flag, codec.name) in known


class Abilities:
    """Has this member log nothing that another one could not apply or read. Belongs to the loop's thread."""

    def __init__(self, kv: KVServer, codec: PayloadCodec, common: CommonCodecs) -> None:
        self._kv = kv
        self._codec = codec
        self._wanted = codec.codec
        self._common = common

    def update(self, others: Iterable[PeerIdentity | None]) -> None:
        """`others`: what each other member last said of itself, None where it was not heard of."""
        told = list(others)
        # Who was not heard of may be of the first version that there was.
        self._kv.cluster_level = min([LEVEL, *(1 if one is None else one.level for one in told)])
        codecs = [frozenset(() if one is None else one.codecs) for one in told]
        self._common.known = frozenset.intersection(*codecs) if codecs else None
        self._choose_codec()

    def _choose_codec(self) -> None:
        """Compress by the codec that the configuration names, if all members have said that they can read it."""
        wanted, codec = self._wanted, self._codec
        if wanted is None:
            return
        usable = self._common.readable(wanted)
        if usable and codec.codec is not wanted:
            log.info("performance.compression_codec: all members can read %r, it is used", wanted.name)
            codec.use(wanted)
        elif not usable and codec.codec is wanted:
            log.warning(
                "performance.compression_codec: not all members have said that they can read %r: snappy is used until "
                "they have", wanted.name,
            )  # fmt: skip
            codec.use(Snappy())
