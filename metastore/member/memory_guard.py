"""Keeps a process within the memory that it may use: what its store may take, and when it writes no more.

A cgroup kills who takes more than its limit, and a start that replays the log would be killed in the same way, again
and again. So `memory_limit.py` finds the limit and `memory_plan.py` shares it out before there are any contents, and
this module looks at what is really used while they come.
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

#: A start ends, and a snapshot is not installed beside the old contents, when no more than that is left: the kernel's
#: own memory for a process counts in a cgroup too, and one turn of a replay takes some MiB at once.
LAST_PART, LAST = 32, 8 << 20
#: Memory for a record of a snapshot beside its bytes: header, rounding, its part of a node.
RECORD = 40


class Memory:
    """What this process may use. `config`: with bounds that fit. `limit`: None where there is none to be found."""

    def __init__(self, config: Config, limit: memory_limit.Limit | None) -> None:
        self.limit = limit
        self.config = memory_plan.fit(config, limit.whole()) if limit is not None else config
        self.quota = config.limits.quota_bytes or memory_plan.MOST_QUOTA
        self.bounds: memory_plan.Plan | None = None
        self.plan: memory_plan.Plan | None = None  # the same, where the contents are in memory

    def share_out(self, *, peers: bool, contents: bool) -> None:
        """Work out who may take what; to be called before there are any contents. `peers`: whether there are other
        members. `contents`: whether the store is in memory too; then warns of a quota that does not fit."""
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
        given = self.config.limits.quota_bytes
        if not given:
            self.quota = min(memory_plan.MOST_QUOTA, self.plan.quota)
        if given < 0 or given > self.plan.quota or self.plan.quota == memory_plan.LEAST_QUOTA:
            self._warn(given)

    def _warn(self, given: int) -> None:
        assert self.limit is not None and self.plan is not None
        if not given:
            log.warning(
                "%d bytes of memory that this process may use (%s) are hardly enough for a store in memory: its "
                "quota is %d bytes", self.limit.nbytes, self.limit.source, self.quota,
            )  # fmt: skip
            return
        log.warning(
            "limits.quota_bytes is %s, but of the %d bytes of memory that this process may use (%s) no more than %d "
            "can be the store's: writes will be refused when memory is short", given if given >= 0 else "no limit",
            self.limit.nbytes, self.limit.source, self.plan.quota,
        )  # fmt: skip

    def calls(self) -> dict[str, int]:
        """What calls that are not over may hold, as keywords of `Limits`, where it is less than that has anyway."""
        if self.bounds is None or self.bounds.calls >= memory_plan.CALLS_MOST:
            return {}
        return {"max_total_buffered": self.bounds.calls, "max_buffered": self.bounds.calls // 2}

    def used(self) -> int:
        """Bytes that count against the limit."""
        return memory_limit.used(self.limit.kind) if self.limit is not None else memory_limit.used()

    def short(self) -> bool:
        """Whether so much is used that no more writes should be taken."""
        return self.plan is not None and self.limit is not None and self.used() > self.limit.nbytes - self.plan.margin

    def fits(self, nbytes: int, records: int) -> bool:
        """Whether so many records, of so many bytes together, can be had in memory beside all that is there."""
        return self.plan is None or self.used() + nbytes + RECORD * records <= self._last()

    def check(self) -> None:
        """Raise OutOfMemory when hardly anything is left: what a start calls while it reads the data."""
        if self.plan is not None and self.used() > self._last():
            raise self.exhausted()

    def exhausted(self, reading: bool = True) -> errors.OutOfMemory:
        """The error that says what to do. `reading`: whether the data was still being read."""
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
    """What this process may use, as the machine and the configuration say."""
    return Memory(config, memory_limit.tightest(memory_limit.limits(given=config.limits.memory_bytes)))
