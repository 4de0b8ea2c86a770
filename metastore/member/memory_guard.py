"""This module keeps a process within the memory that it may use: it bounds the store, and refuses writes when memory is
short.

A cgroup kills a process that takes more than its limit. A start that replays the log would be killed in the same way,
again and again. Therefore `memory_limit.py` finds the limit and `memory_plan.py` shares it out before there are any
contents. This module measures how much is really used while the contents grow.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .. import errors
from .._core.work import set_held_most
from . import memory_limit, memory_plan

if TYPE_CHECKING:
    from ..config import Config

log = logging.getLogger("metastore.memory")

#: When no more than this is left, a start ends, and a snapshot is not installed beside the old contents. The kernel's
#: own memory for a process counts in a cgroup, too, and one turn of a replay takes some MiB at once.
LAST_PART, LAST = 32, 8 << 20
#: Bytes of memory that a record of a snapshot takes beside its contents: header, rounding, its part of a node.
RECORD = 40


class Memory:
    """The memory of this process. `config` has bounds that fit into it. `limit` is None if no limit was found."""

    def __init__(self, config: Config, limit: memory_limit.Limit | None) -> None:
        self.limit = limit
        self.config = memory_plan.fit(config, limit.whole()) if limit is not None else config
        self.quota = config.limits.quota_bytes or memory_plan.MOST_QUOTA
        self.bounds: memory_plan.Plan | None = None
        self.plan: memory_plan.Plan | None = None  # the same, where the contents are in memory

    def share_out(self, *, peers: bool, contents: bool) -> None:
        """Shares the memory out. The owner calls this before there are any contents.

        `peers` says whether there are other members, and `contents` whether the store is in memory. If it is, a quota
        that does not fit causes a warning.
        """
        if self.limit is None:
            return
        self.bounds = memory_plan.plan(self.config, self.limit.whole(), self.limit.left(), peers)
        set_held_most(self.bounds.reply, self.bounds.replies)
        if not contents:
            return
        self.plan = self.bounds
        log.log(
            logging.INFO if self.plan.quota < memory_plan.MOST_QUOTA else logging.DEBUG,
            "%d bytes of memory may be used (%s), %d of them by the store with its history",
            self.limit.nbytes, self.limit.source, self.plan.quota,
        )  # fmt: skip
        configured = self.config.limits.quota_bytes
        if not configured:
            self.quota = min(memory_plan.MOST_QUOTA, self.plan.quota)
        if configured < 0 or configured > self.plan.quota or self.plan.quota == memory_plan.LEAST_QUOTA:
            self._warn(configured)

    def _warn(self, configured: int) -> None:
        assert self.limit is not None and self.plan is not None
        if not configured:
            log.warning(
                "%d bytes of memory that this process may use (%s) are hardly enough for a store in memory: its "
                "quota is %d bytes", self.limit.nbytes, self.limit.source, self.quota,
            )  # fmt: skip
            return
        log.warning(
            "limits.quota_bytes is %s, but of the %d bytes of memory that this process may use (%s) no more than %d "
            "can be the store's: writes will be refused when memory is short",
            configured if configured >= 0 else "no limit",
            self.limit.nbytes, self.limit.source, self.plan.quota,
        )  # fmt: skip

    def calls(self) -> dict[str, int]:
        """The bounds on what open calls may hold, as keywords of `Limits`; empty if its defaults are no larger."""
        if self.bounds is None or self.bounds.calls >= memory_plan.CALLS_MOST:
            return {}
        return {"max_total_buffered": self.bounds.calls, "max_buffered": self.bounds.calls // 2}

    def used(self) -> int:
        """The bytes in use that count against the limit."""
        return memory_limit.used(self.limit.kind) if self.limit is not None else memory_limit.used()

    def short(self) -> bool:
        """Whether so much memory is used that writes must be refused."""
        return self.plan is not None and self.limit is not None and self.used() > self.limit.nbytes - self.plan.margin

    def fits(self, nbytes: int, records: int) -> bool:
        """Whether `records` records of `nbytes` bytes together fit into memory beside everything that is there."""
        return self.plan is None or self.used() + nbytes + RECORD * records <= self._last()

    def check(self) -> None:
        """Raises OutOfMemory when hardly anything is left. A start calls this while it reads the data."""
        if self.plan is not None and self.used() > self._last():
            raise self.exhausted()

    def exhausted(self, reading: bool = True) -> errors.OutOfMemory:
        """Returns the error that says what to do. `reading` says whether the data was still being read."""
        allowed = "" if self.limit is None else f" of the {self.limit.nbytes} that it may use ({self.limit.source})"
        if self.plan is None or not reading:
            return errors.OutOfMemory(f"no memory is left: {self.used()} bytes{allowed} are taken")
        return errors.OutOfMemory(
            f"the data does not fit into memory: {self.used()} bytes{allowed} are taken, and not all of the data is "
            "read. Give this process more memory, or start it on the same data directory with storage.engine = "
            '"rocksdb", which keeps the data on disk'
        )

    def _last(self) -> int:
        assert self.limit is not None
        return self.limit.nbytes - self.limit.nbytes // LAST_PART - LAST


def find(config: Config) -> Memory:
    """Finds what this process may use, by the machine and the configuration."""
    return Memory(config, memory_limit.tightest(memory_limit.limits(configured=config.limits.memory_bytes)))
