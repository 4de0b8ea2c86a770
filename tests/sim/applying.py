"""The Raft core and the applier of a simulated member: the real ones, which show the checker what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metastore._core.mvcc_apply import Applier
from metastore._core.raft import RawNode
from metastore._core.raft_types import ConfState

from .checker import heads

if TYPE_CHECKING:
    from .node import Member


class SimRaw(RawNode):
    """The real core; notes the memberships it has worked with."""

    confs: list[ConfState]
    member: Member

    def apply_conf_change(self, change: Any) -> ConfState:
        """As the real one."""
        before = self.status().progress
        conf = super().apply_conf_change(change)
        self.member.cluster.checker.changed(self.member, before)
        self.confs.append(conf)
        return conf


class SimApplier(Applier):
    """The real applier; shows the checker what is applied."""

    member: Member
    stands_before: Any

    def apply_images(self, images: Any, at: int = 0, budget: int = 0) -> int:
        """As the real one; the checker looks at the state after each entry."""
        checker, going_on, left = self.member.cluster.checker, self.inside, budget
        if not going_on:
            self.pause = False
        for _, _, _, kind, payload, size in heads(images, at):
            begin, at = at, payload + size
            self.stands_before = images[begin:at]
            if not kind and not going_on:
                checker.applying(self.member, self.stands_before)
            before, going_on = self.applied_index, False
            self.member.applying = True
            try:
                stopped = not super().apply_images(self.stands_before, 0, max(1, left) if budget else 0)
            finally:
                self.member.applying = False
            left -= self.cost
            if stopped:
                return begin
            if self.applied_index > before:
                self.at_its_end(self.applied_index)
            if self.pause:
                break
        return at

    def at_its_end(self, index: int) -> None:
        """An entry is carried out."""
        self.member.cluster.checker.is_at(self.member, index)

    def passed(self, index: int, term: int) -> None:
        """As the real one."""
        super().passed(index, term)
        checker = self.member.cluster.checker
        checker.applying(self.member, self.stands_before)
        checker.membership(self.member, index)
        self.at_its_end(index)
        if self.member.at_change is not None:
            self.member.at_change()
            self.member.at_change = None

    def commit(self) -> None:
        """As the real one."""
        super().commit()
        self.member.mirror.commit(self.store)
        self.member.cluster.checker.state_is(self.member, self.applied_index, self.store.revision)

    def reload(self) -> None:
        """As the real one: a snapshot is the state now."""
        super().reload()
        self.member.installed(self.applied_index)
