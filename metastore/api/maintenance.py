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
        """Versions, sizes, and where Raft stands; `errors` tells of a missing leader and of raised alarms."""
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
        """Hand leadership over; answered when the other member leads."""
        asked = pb.parse(pb.MoveLeaderRequest, request.body)

        def done(error: errors.MetaStoreError | None) -> None:
            if error is not None:
                request.fail(error)
            else:
                request.complete(pb.MoveLeaderResponse(header=header(self._status)).SerializeToString())

        self._leadership.move_leader(asked.targetID, done)

    def alarm(self, request: Request) -> None:
        """GET returns the raised alarms of any member, all or those of one kind, after a quorum confirmed that they are
        current.

        ACTIVATE and DEACTIVATE are answered with the alarm when this member has applied the change.
        """
        asked = pb.parse(pb.AlarmRequest, request.body)

        def changed(alarms: list[Alarm], error: errors.MetaStoreError | None) -> None:
            if error is not None:
                request.fail(error)
                return
            found = [pb.AlarmMember(memberID=member, alarm=kind) for member, kind in alarms]
            request.complete(pb.AlarmResponse(header=header(self._status), alarms=found).SerializeToString())

        def confirmed(error: errors.MetaStoreError | None) -> None:
            changed([one for one in self._alarms.alarms() if asked.alarm in (0, one[1])], error)

        if asked.action == pb.AlarmRequest.GET:
            self._reads.confirm_read(confirmed)
        else:
            self._alarms.change_alarm(asked.action, asked.memberID, asked.alarm, changed, request)

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
        self._hash(request, 0, True, lambda found: pb.HashResponse(header=self._header(found), hash=found.hash))

    def hash_kv(self, request: Request) -> None:
        """Answers with a hash of the keys and their history up to a revision, as far as compactions have kept it.

        Compare it only between members whose answers have the same compact_revision. The number differs from etcd's.
        """
        asked = pb.parse(pb.HashKVRequest, request.body)
        self._hash(
            request, asked.revision, False,
            lambda found: pb.HashKVResponse(
                header=self._header(found), hash=found.hash, compact_revision=found.compact_revision,
                hash_revision=found.revision,
            ),
        )  # fmt: skip

    def _header(self, found: HashInfo) -> Any:
        """With the revision that was current for the sum."""
        made = header(self._status)
        made.revision = found.current
        return made

    def _hash(self, request: Request, revision: int, whole: bool, reply: Callable[[HashInfo], Any]) -> None:
        def done(found: HashInfo | None, error: errors.MetaStoreError | None) -> None:
            if found is None:
                request.fail(error or errors.Stopped())
            else:
                request.complete(reply(found).SerializeToString())

        self._upkeep.hash_kv(revision, whole, lambda: request.closed, done)
