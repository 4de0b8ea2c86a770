"""A member's state: its engine, its snapshots, and the replica around them."""

from __future__ import annotations

import dataclasses
import secrets
import time
from functools import partial
from typing import TYPE_CHECKING

from .. import storage
from .._core.codec import PayloadCodec
from .._core.driver_budgets import Budgets
from .._core.entry import MAX_PAYLOAD
from ..codecs import for_proposals as codec_for_proposals
from ..codecs import load_all as load_all_codecs
from ..replica.peer_link import PeerLink
from ..snapshots import startup
from ..snapshots.catalogue import Catalogue
from ..snapshots.coordinator import Snapshots
from ..snapshots.files import SnapshotStore, open_store
from ..snapshots.nowhere import NoSnapshots
from ..snapshots.policy import policy_of
from ..snapshots.transfer import Transfers
from ..storage.in_memory import TransientEngine
from ..storage.read_thread import ReadThread
from .abilities import CommonCodecs
from .assembly import Replica, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import Config
    from ..failpoints import Failpoints
    from ..net.loop import Loop
    from ..replica.driver import Driver
    from .closing import Closing
    from .disk import Disk
    from .memory_guard import Memory

# The bytes that an entry may hold when decoded. This is a constant, because it must not be lower on one member than on
# another, or than it was when an old entry was written.
MAX_DECODED = MAX_PAYLOAD


class State:
    """The constructor recovers the state, and `closing` closes it. `members_changed` is called when the roster changed.

    The constructor raises ConfigError, DamagedData, OutOfMemory and the errors of the engine. Attributes:

    engine: the storage engine, with the state from which the log goes on.
    replica: the parts that decide.
    transfers: the snapshots on their way between members.
    codecs: the codecs that all members can read.
    """

    def __init__(
        self, config: Config, disk: Disk, memory: Memory, loop: Loop, failpoints: Failpoints,
        closing: Closing, members_changed: Callable[[], None],
    ) -> None:  # fmt: skip
        identity, maintenance = disk.identity, config.maintenance
        if disk.in_memory:
            # Nobody needs its log for long, and what that takes of memory is counted nowhere.
            maintenance = dataclasses.replace(
                maintenance, snapshot_count=min(20, maintenance.snapshot_count), snapshot_min_size=0
            )
        self.engine = TransientEngine() if disk.in_memory else storage.open_engine(config, disk.data_dir.engine)
        closing.at_end("the storage engine", self.engine.close)
        peers = len(identity.members) > 1 or bool(identity.contacts)
        memory.share_out(peers=peers, contents=disk.in_memory or not self.engine.persistent)
        self.codecs = CommonCodecs()
        store: SnapshotStore = (
            NoSnapshots()
            if disk.in_memory
            else open_store(
                maintenance, disk.data_dir.snapshots, failpoints, self.codecs.readable, config.plugins("codecs")
            )
        )
        catalogue = Catalogue(
            startup.begin(
                store, self.engine, disk.wal, identity.cluster_id, memory,
                partial(storage.left_behind, config, disk.data_dir.engine),
            )
        )  # fmt: skip
        read_thread = ReadThread(loop.call_soon_threadsafe)
        closing.callback(read_thread.close)

        def snapshots(driver: Driver) -> Snapshots:
            return Snapshots(
                store, catalogue, self.engine, disk.wal, driver, loop, policy_of(maintenance),
                cluster_id=identity.cluster_id, failpoints=failpoints, memory=memory,
            )  # fmt: skip

        self.replica = Replica(
            identity,
            disk.wal,
            self.engine,
            PeerLink(),
            settings=settings_of(config),
            codec=_codec(config),
            read=read_thread.read,
            snapshots=snapshots,
            wall=time.time(),
            chance=secrets.randbits,
            doubt=disk.unsynced.doubt,
            points=failpoints,
            members_changed=members_changed,
            budgets=Budgets(share=loop.share, again=4),
        )
        snapshots_of_replica = self.replica.snapshots
        closing.at_end("the snapshots", snapshots_of_replica.close)
        self.transfers = Transfers(
            loop, store, catalogue, identity.cluster_id, maintenance.snapshot_chunk_timeout,
            report=self.replica.raw.report_snapshot, bad=snapshots_of_replica.bad,
            rate=maintenance.snapshot_send_rate,
        )  # fmt: skip
        closing.at_end("the transfers of snapshots", self.transfers.close)


def _codec(config: Config) -> PayloadCodec:
    """The codec of entries."""
    table, tables = config.performance, config.plugins("codecs")
    configured = {table.compression_codec} if table.enable_compression else set[str]()
    if config.maintenance.enable_snapshot_compression:
        configured.add(config.maintenance.snapshot_compression_codec)
    return PayloadCodec(
        codec_for_proposals(table, tables), table.compression_min_size, MAX_DECODED,
        decoders=load_all_codecs(tables, configured),
    )  # fmt: skip
