"""etcdserverpb.Maintenance: member status, alarms, defragmentation, hashes of the state, and leadership transfer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .. import errors
from ..replica.alarms import NAMES
from . import pb
from .common import ETCD_VERSION, header

if TYPE_CHECKING:
    from .._core.h2_request import Request
    from ..replica.alarms import Alarm
    from .common import Handler
    from .ports import Alarms, HashInfo, Leadership, Reads, Status, Upkeep


class Maintenance:
    """The Maintenance service of this member, without the Snapshot call."""

    def __init__(self, status: Status, reads: Reads, leadership: Leadership, alarms: Alarms, upkeep: Upkeep) -> None:
        self._status = status
        self._reads = reads
        self._leadership = leadership
        self._alarms = alarms
        self._upkeep = upkeep

    def methods(self) -> Mapping[bytes, Handler]:
        """Path -> handler."""
        return {
            b"/etcdserverpb.Maintenance/Status": self.status,
            b"/etcdserverpb.Maintenance/Alarm": self.alarm,
            b"/etcdserverpb.Maintenance/MoveLeader": self.move_leader,
            b"/etcdserverpb.Maintenance/Defragment": self.defragment,
            b"/etcdserverpb.Maintenance/Hash": self.hash,
            b"/etcdserverpb.Maintenance/HashKV": self.hash_kv,
        }

    def status(self, request: Request) -> None:
        """Answer with versions, sizes and the Raft position. `errors` names a missing leader and raised alarms."""
        pb.parse(pb.StatusRequest, request.body)
        status = self._status
        troubles = []
        if status.leader_id == 0:
            troubles.append(errors.NoLeader.default)
        troubles += [f"memberID:{member} alarm:{NAMES.get(kind, kind)} " for member, kind in self._alarms.alarms()]
        request.complete(
            pb.StatusResponse(
                header=header(status),
                version=ETCD_VERSION,
                dbSize=status.db_size,
                leader=status.leader_id,
                raftIndex=status.raft_index,
                raftTerm=status.raft_term,
                raftAppliedIndex=status.applied_index,
                errors=troubles,
                dbSizeInUse=status.db_size_in_use,
                isLearner=status.is_learner,
            ).SerializeToString()
        )

    def move_leader(self, request: Request) -> None:
        """Hand leadership over. The answer comes when the other member leads."""
        message = pb.parse(pb.MoveLeaderRequest, request.body)

        def done(error: errors.MetaStoreError | None) -> None:
            if error is not None:
                request.fail(error)
            else:
                request.complete(pb.MoveLeaderResponse(header=header(self._status)).SerializeToString())

        self._leadership.move_leader(message.targetID, done)

    def alarm(self, request: Request) -> None:
        """GET returns the raised alarms of any member, all or those of one kind, after a quorum confirmed that they are
        current.

        ACTIVATE and DEACTIVATE are answered with the alarm when this member has applied the change.
        """
        message = pb.parse(pb.AlarmRequest, request.body)

        def changed(alarms: list[Alarm], error: errors.MetaStoreError | None) -> None:
            if error is not None:
                request.fail(error)
                return
            raised = [pb.AlarmMember(memberID=member, alarm=kind) for member, kind in alarms]
            request.complete(pb.AlarmResponse(header=header(self._status), alarms=raised).SerializeToString())

        def confirmed(error: errors.MetaStoreError | None) -> None:
            changed([one for one in self._alarms.alarms() if message.alarm in (0, one[1])], error)

        if message.action == pb.AlarmRequest.GET:
            self._reads.confirm_read(confirmed)
        else:
            self._alarms.change_alarm(message.action, message.memberID, message.alarm, changed, request)

    def defragment(self, request: Request) -> None:
        """Gives back the room that is held but not needed. It never blocks, and answers when it is done."""
        pb.parse(pb.DefragmentRequest, request.body)

        def done(error: errors.MetaStoreError | None) -> None:
            if error is not None:
                request.fail(error)
            else:
                request.complete(pb.DefragmentResponse(header=header(self._status)).SerializeToString())

        self._upkeep.defragment(done)

    def hash(self, request: Request) -> None:
        """Answers with a hash of the present replicated state: keys with their history, members, alarms."""
        pb.parse(pb.HashRequest, request.body)
        self._hash(request, 0, True, lambda info: pb.HashResponse(header=self._header(info), hash=info.hash))

    def hash_kv(self, request: Request) -> None:
        """Answers with a hash of the keys and their history up to a revision, as far as compactions have kept it.

        Compare it only between members whose answers have the same compact_revision. The number differs from etcd's.
        """
        message = pb.parse(pb.HashKVRequest, request.body)
        self._hash(
            request, message.revision, False,
            lambda info: pb.HashKVResponse(
                header=self._header(info), hash=info.hash, compact_revision=info.compact_revision,
                hash_revision=info.revision,
            ),
        )  # fmt: skip

    def _header(self, info: HashInfo) -> Any:
        """The header with the revision that was current when the hash was computed."""
        reply = header(self._status)
        reply.revision = info.current
        return reply

    def _hash(self, request: Request, revision: int, whole: bool, reply: Callable[[HashInfo], Any]) -> None:
        def done(info: HashInfo | None, error: errors.MetaStoreError | None) -> None:
            if info is None:
                request.fail(error or errors.Stopped())
            else:
                request.complete(reply(info).SerializeToString())

        self._upkeep.hash_kv(revision, whole, lambda: request.closed, done)
