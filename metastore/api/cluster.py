"""etcdserverpb.Cluster: lists the members and changes them.

A change is answered after it has been applied at this member; by then the roster shows it.
`metastore.replica.roster` defines the checks that a change must pass, and where they are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import pb
from .common import header

if TYPE_CHECKING:
    from .. import errors
    from .._core.h2_request import Request
    from ..ports import Done
    from .common import Handler
    from .ports import MemberInfo, Membership, Position, Reads


class Cluster:
    """The member list and its changes."""

    def __init__(self, position: Position, reads: Reads, membership: Membership) -> None:
        self._position = position
        self._reads = reads
        self._membership = membership

    def methods(self) -> Mapping[bytes, Handler]:
        """Path -> handler."""
        return {
            b"/etcdserverpb.Cluster/MemberList": self.member_list,
            b"/etcdserverpb.Cluster/MemberAdd": self.member_add,
            b"/etcdserverpb.Cluster/MemberRemove": self.member_remove,
            b"/etcdserverpb.Cluster/MemberUpdate": self.member_update,
            b"/etcdserverpb.Cluster/MemberPromote": self.member_promote,
        }

    def member_list(self, request: Request) -> None:
        """All members; with `linearizable` only after a quorum confirmed that this list is current."""
        message = pb.parse(pb.MemberListRequest, request.body)
        answer = self._answer(request, pb.MemberListResponse)
        if message.linearizable:
            self._reads.confirm_read(answer)
        else:
            answer(None)

    def member_add(self, request: Request) -> None:
        """Add a voter or a learner that will be reached at the given peer URLs."""
        message = pb.parse(pb.MemberAddRequest, request.body)

        def done(member: MemberInfo, error: errors.MetaStoreError | None) -> None:
            self._answer(request, pb.MemberAddResponse, member=_message(member))(error)

        self._membership.add_member(list(message.peerURLs), message.isLearner, done, request)

    def member_remove(self, request: Request) -> None:
        """Remove a member; it stops by itself when it hears of it."""
        message = pb.parse(pb.MemberRemoveRequest, request.body)
        self._membership.remove_member(message.ID, self._answer(request, pb.MemberRemoveResponse), request)

    def member_update(self, request: Request) -> None:
        """Change a member's peer URLs."""
        message = pb.parse(pb.MemberUpdateRequest, request.body)
        done = self._answer(request, pb.MemberUpdateResponse)
        self._membership.update_member(message.ID, list(message.peerURLs), done, request)

    def member_promote(self, request: Request) -> None:
        """Make a learner a voter; refused until it has nearly all of the leader's log."""
        message = pb.parse(pb.MemberPromoteRequest, request.body)
        self._membership.promote_member(message.ID, self._answer(request, pb.MemberPromoteResponse), request)

    def _answer(self, request: Request, kind: Any, **more: Any) -> Done:
        """Return a callback that answers `request`, when the outcome is known, with a message that carries the member
        list."""

        def answer(error: errors.MetaStoreError | None) -> None:
            if error is not None:
                request.fail(error)
                return
            members = [_message(member) for member in self._membership.members()]
            request.complete(kind(header=_header(self._position), members=members, **more).SerializeToString())

        return answer


def _header(position: Position) -> Any:
    """The header of this service. Like etcd's it has no revision, because none was read."""
    reply = header(position)
    reply.ClearField("revision")
    return reply


def _message(member: MemberInfo) -> Any:
    return pb.Member(
        ID=member.id,
        name=member.name,
        peerURLs=list(member.peer_urls),
        clientURLs=list(member.client_urls),
        isLearner=member.is_learner,
    )
