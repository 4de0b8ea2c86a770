"""etcdserverpb.Watch: one call carries any number of watchers. `metastore.member.watching` serves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .._core.h2_request import Request
    from .common import Handler
    from .ports import Watches

PATH: Final = b"/etcdserverpb.Watch/Watch"


class Watch:
    """The Watch service of this member."""

    def __init__(self, watches: Watches) -> None:
        self._watches = watches

    def methods(self) -> Mapping[bytes, Handler]:
        """Path -> handler."""
        return {PATH: self.watch}

    def watch(self, request: Request) -> None:
        """Serves the stream until its client or its member ends it."""
        self._watches.open(request)
