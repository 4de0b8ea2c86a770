"""etcdserverpb.Cluster: who the members are. Changing them is not there yet (UNIMPLEMENTED)."""

from __future__ import annotations

from collections.abc import Mapping

from metastore import errors
from metastore._core.h2 import Request
from metastore.api import Handler, NodeView, header, pb


class Cluster:
    """The member list."""

    def __init__(self, node: NodeView) -> None:
        self._node = node

    def methods(self) -> Mapping[bytes, Handler]:
        """Path -> handler."""
        return {b"/etcdserverpb.Cluster/MemberList": self.member_list}

    def member_list(self, request: Request) -> None:
        """All members; with `linearizable` only after a quorum confirmed that this list is current."""
        asked = pb.parse(pb.MemberListRequest, request.body)
        if asked.linearizable:
            self._node.confirm_read(lambda error: self._answer(request, error))
        else:
            self._answer(request, None)

    def _answer(self, request: Request, error: errors.MetaStoreError | None) -> None:
        if error is not None:
            request.fail(error)
            return
        node = self._node
        members = [
            pb.Member(
                ID=member.id,
                name=member.name,
                peerURLs=list(member.peer_urls),
                clientURLs=list(member.client_urls),
                isLearner=member.is_learner,
            )
            for member in node.members()
        ]
        request.complete(pb.MemberListResponse(header=header(node), members=members).SerializeToString())
