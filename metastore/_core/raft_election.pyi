from metastore._core.raft_replication import Replication

class Election(Replication):
    def campaign(self) -> None: ...
    def transfer_leader(self, id: int) -> None: ...  # does nothing for a learner or an unknown id
