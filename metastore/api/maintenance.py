"""etcdserverpb.Maintenance: Status, and reading alarms. The rest of the service is not there yet (UNIMPLEMENTED)."""

from __future__ import annotations

from collections.abc import Mapping

from metastore import errors
from metastore._core.h2 import Request
from metastore.api import ETCD_VERSION, Handler, NodeView, header, pb

ALARM_NAMES = {1: "NOSPACE", 2: "CORRUPT"}


class Maintenance:
    """State of this member."""

    def __init__(self, node: NodeView) -> None:
        self._node = node

    def methods(self) -> Mapping[bytes, Handler]:
        """Path -> handler."""
        return {
            b"/etcdserverpb.Maintenance/Status": self.status,
            b"/etcdserverpb.Maintenance/Alarm": self.alarm,
            b"/etcdserverpb.Maintenance/MoveLeader": self.move_leader,
        }

    def status(self, request: Request) -> None:
        """Versions, sizes, and where Raft stands; `errors` tells of a missing leader and of raised alarms."""
        pb.parse(pb.StatusRequest, request.body)
        node = self._node
        troubles = []
        if node.leader_id == 0:
            troubles.append(errors.NoLeader.default)
        troubles += [f"memberID:{member} alarm:{ALARM_NAMES.get(kind, kind)} " for member, kind in node.alarms()]
        request.complete(
            pb.StatusResponse(
                header=header(node),
                version=ETCD_VERSION,
                dbSize=node.db_size,
                leader=node.leader_id,
                raftIndex=node.raft_index,
                raftTerm=node.raft_term,
                raftAppliedIndex=node.applied_index,
                errors=troubles,
                dbSizeInUse=node.db_size_in_use,
                isLearner=any(m.is_learner for m in node.members() if m.id == node.member_id),
            ).SerializeToString()
        )

    def move_leader(self, request: Request) -> None:
        """Hand leadership over; answered when the other member leads."""
        asked = pb.parse(pb.MoveLeaderRequest, request.body)

        def done(error: errors.MetaStoreError | None) -> None:
            if error is not None:
                request.fail(error)
            else:
                request.complete(pb.MoveLeaderResponse(header=header(self._node)).SerializeToString())

        self._node.move_leader(asked.targetID, done)

    def alarm(self, request: Request) -> None:
        """GET: the alarms that are raised, all of them or those of one member and kind."""
        asked = pb.parse(pb.AlarmRequest, request.body)
        if asked.action != pb.AlarmRequest.GET:
            raise errors.Unimplemented("etcdserver: alarms cannot be set or cleared by a client of this server")
        found = [
            pb.AlarmMember(memberID=member, alarm=kind)
            for member, kind in self._node.alarms()
            if asked.alarm in (0, kind)
        ]
        request.complete(pb.AlarmResponse(header=header(self._node), alarms=found).SerializeToString())
