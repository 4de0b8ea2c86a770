"""The link from this member to the others: the driver and its parts send everything through it.

This module is pure. Until a transport is connected, the link leads nowhere: a member that is alone opens no port, but
other members may join it at any time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import errors
from .._core.raft_wire import REFUSALS
from ..settings import MAX_BATCH_OPS

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._core.raft_types import Message
    from ..ports import Transport


class PeerLink:
    """Passes everything to its transport. Without a transport, messages and refusals are lost, and nothing
    is forwarded.
    """

    #: Sends the Raft messages of one Ready.
    send: Callable[[list[Message]], object]

    def __init__(self, transport: Transport | None = None) -> None:
        self._transport = transport
        # Each Ready passes here, so there is no function of the interpreter between the driver and the transport.
        self.send = _lost if transport is None else transport.send
        #: Whether there is no transport, and so no other member.
        self.alone = transport is None

    def connect(self, transport: Transport) -> None:
        """Send by way of `transport` from now on."""
        self._transport = transport
        self.send = transport.send
        self.alone = False

    def forward(self, to: int, frame: bytes) -> bool:
        """Send framed operations to member `to`, which leads; false if they were surely not sent."""
        return self._transport is not None and self._transport.forward(to, frame)

    def refuse(self, to: int, code: int, ids: list[int]) -> None:
        """Tell member `to` that the operations with these request ids were surely not logged; `code` says why."""
        if self._transport is not None:
            for at in range(0, len(ids), MAX_BATCH_OPS):
                self._transport.refuse(to, code, ids[at : at + MAX_BATCH_OPS])

    def withdraw(self, to: int, ids: list[int]) -> None:
        """Ask member `to` not to log these operations that were forwarded to it, if it has not done so yet."""
        if self._transport is not None:
            for at in range(0, len(ids), MAX_BATCH_OPS):
                self._transport.withdraw(to, ids[at : at + MAX_BATCH_OPS])

    def lease(self, to: int, asks: bool, data: bytes) -> bool:
        """Send member `to` a question about leases, or the answer to one; false if it was surely not sent."""
        return self._transport is not None and self._transport.lease(to, asks, data)


def _lost(_messages: list[Message]) -> None:
    """There is nobody to send them to."""


def refusal_code(error: errors.ApiError) -> int:
    """The number that stands for `error` in a refusal."""
    return REFUSALS.index(type(error) if type(error) in REFUSALS else errors.LeaderChanged)


def refusal_type(code: int) -> type[errors.MetaStoreError]:
    """The error that a refusal with this number means; LeaderChanged for a number that only a later version knows."""
    return REFUSALS[code] if code < len(REFUSALS) else errors.LeaderChanged
