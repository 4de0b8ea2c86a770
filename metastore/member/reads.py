"""A member makes reads itself, to find out whether its state is current and whether it can be read at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..api import pb
from .waiters import outcome

if TYPE_CHECKING:
    from .._core.kv_server import KVServer
    from ..ports import Done


class MemberReads:
    """The `api.ports.Reads` of a member."""

    def __init__(self, kv: KVServer) -> None:
        self._kv = kv
        # A health check reads a key that hardly ever exists, so its cost does not depend on the data.
        self._probe: bytes = pb.RangeRequest(key=b"health", keys_only=True).SerializeToString()

    def local_read(self) -> None:
        """Reads a key in the state that this member has applied. Raises ApiError."""
        self._kv.store.range_reply(self._probe)

    def confirm_read(self, done: Done) -> None:
        """Calls `done` when a read is linearizable, or with the error."""
        self._kv.confirm(outcome(done))
