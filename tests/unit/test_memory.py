"""The memory that a process may use is found, shared out, and kept: the store is full before the process is killed, and
there is a way out."""

from __future__ import annotations

import logging
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT
from support.memlimits import MIB

from metastore import errors
from metastore._core.codec import PayloadCodec
from metastore._core.engine import APPLIED_KEY, MemoryEngine
from metastore._core.ordered_map import reclaim
from metastore._core.raft_types import ConfState, Snapshot
from metastore._core.record import held_now
from metastore._core.snap_records import Walker
from metastore.config import Config
from metastore.failpoints import Failpoints
from metastore.member import memory_guard, memory_limit, memory_plan
from metastore.member.memory_limit import ADDRESSES, DATA, RESIDENT, Limit
from metastore.snapshots.catalogue import Catalogue
from metastore.snapshots.coordinator import Snapshots
from metastore.snapshots.files import SnapshotStore
from metastore.snapshots.format import Header

pytestmark = pytest.mark.node_only

GIB = 1 << 30
NONE_V1 = "9223372036854771712\n"


# ---- what the machine reports


def tree(root: Path, files: dict[str, str]) -> Path:
    """Make a root with these files, and with a machine of 8 GiB."""
    for name, text in {"proc/meminfo": f"MemTotal: {8 << 20} kB\nMemFree: 1 kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def mount(top: str, where: str, kind: str, options: str = "rw") -> str:
    return f"35 31 0:32 {top} {where} rw,relatime shared:5 - {kind} {kind} {options}\n"


V1 = mount("/", "/sys/fs/cgroup/memory", "cgroup", "rw,memory") + mount("/", "/sys/fs/cgroup/cpu", "cgroup", "rw,cpu")
CASES: dict[str, tuple[dict[str, str], int]] = {
    "no cgroups": ({}, 7 * GIB),
    "v1": ({
        "proc/self/cgroup": "9:cpu:/a\n4:memory:/pod/box\n0::/\n", "proc/self/mountinfo": V1,
        "sys/fs/cgroup/memory/pod/box/memory.limit_in_bytes": f"{300 * MIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": NONE_V1,
    }, 300 * MIB),
    "v1, an outer group": ({
        "proc/self/cgroup": "4:memory:/pod/box\n", "proc/self/mountinfo": V1,
        "sys/fs/cgroup/memory/pod/box/memory.limit_in_bytes": NONE_V1,
        "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": f"{200 * MIB}\n",
    }, 200 * MIB),
    "v1, an outer group that cannot be seen": ({
        "proc/self/cgroup": "4:memory:/docker/1234\n",
        "proc/self/mountinfo": mount("/docker/1234", "/sys/fs/cgroup/memory", "cgroup", "rw,memory"),
        "sys/fs/cgroup/memory/memory.limit_in_bytes": NONE_V1,
        "sys/fs/cgroup/memory/memory.stat": f"cache 5\nhierarchical_memory_limit {400 * MIB}\n",
    }, 400 * MIB),
    "v2": ({
        "proc/self/cgroup": "0::/user.slice/me\n", "proc/self/mountinfo": mount("/", "/sys/fs/cgroup", "cgroup2"),
        "sys/fs/cgroup/user.slice/me/memory.max": f"{500 * MIB}\n",
        "sys/fs/cgroup/user.slice/memory.max": "max\n",
    }, 500 * MIB),
    "v2, an outer group, and one that is throttled": ({
        "proc/self/cgroup": "0::/a/b/c\n", "proc/self/mountinfo": mount("/", "/sys/fs/cgroup", "cgroup2"),
        "sys/fs/cgroup/a/b/c/memory.max": "max\n", "sys/fs/cgroup/a/b/memory.high": f"{90 * MIB}\n",
        "sys/fs/cgroup/a/memory.max": f"{100 * MIB}\n",
    }, 90 * MIB),
    "v2, in a namespace": ({
        "proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mount("/", "/sys/fs/cgroup", "cgroup2"),
        "sys/fs/cgroup/memory.max": f"{120 * MIB}\n",
    }, 120 * MIB),
    "v2, mounted from elsewhere": ({
        "proc/self/cgroup": "0::/kube/x\n", "proc/self/mountinfo": mount("/kube/y", "/sys/fs/cgroup", "cgroup2"),
        "sys/fs/cgroup/memory.max": f"{130 * MIB}\n",
    }, 130 * MIB),
    "both, v2 without a memory controller": ({
        "proc/self/cgroup": "4:memory:/x\n0::/y\n",
        "proc/self/mountinfo": V1 + mount("/", "/sys/fs/cgroup/unified", "cgroup2"),
        "sys/fs/cgroup/memory/x/memory.limit_in_bytes": f"{140 * MIB}\n",
        "sys/fs/cgroup/unified/y/cgroup.procs": "1\n",
    }, 140 * MIB),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_tightest_limit_is_found(name: str, tmp_path: Path) -> None:
    files, nbytes = CASES[name]
    limit = memory_limit.tightest(memory_limit.limits(tree(tmp_path, files)))
    assert limit is not None and limit.nbytes == nbytes, limit
    assert limit.kind == RESIDENT and (("cgroup" in limit.source) == (nbytes < GIB))
    by_setting = memory_limit.tightest(memory_limit.limits(tree(tmp_path, files), configured=64 * MIB))
    assert by_setting == Limit(64 * MIB, "limits.memory_bytes")


LIMITED = """
import resource, sys
from metastore.member import memory_limit
resource.setrlimit(getattr(resource, sys.argv[1]), (1 << 30, 1 << 30))
found = memory_limit.tightest(memory_limit.limits())
before = memory_limit.used(found.kind)
taken = bytearray(32 << 20)
print(found.kind, found.source, found.nbytes, memory_limit.used(found.kind) - before >= 32 << 20)
"""


@pytest.mark.parametrize(("name", "kind"), [("RLIMIT_AS", ADDRESSES), ("RLIMIT_DATA", DATA)])
def test_resource_limits_are_found(name: str, kind: str) -> None:
    argv = [sys.executable, "-c", LIMITED, name]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == [kind, name, str(GIB), "True"]


# ---- the shares


@pytest.mark.parametrize("most", [64 * MIB, 128 * MIB, 300 * MIB, GIB, 4 * GIB, 64 * GIB])
@pytest.mark.parametrize("peers", [False, True])
def test_all_that_may_grow_fits(most: int, peers: bool) -> None:
    config = memory_plan.fit(Config(), most)
    base = 30 * MIB
    plan = memory_plan.plan(config, most, most - base, peers)
    total = base + sum(plan.beside.values()) + plan.room
    assert total <= most or plan.quota == memory_plan.LEAST_QUOTA
    assert plan.quota < plan.room
    assert plan.margin < most
    if most >= 300 * MIB:
        assert plan.quota > most // 5, "hardly anything is left for the store"
    less = memory_plan.plan(config, most, most - base - MIB, peers)
    assert less.quota <= plan.quota


def test_only_what_is_at_its_default_gets_smaller() -> None:
    assert memory_plan.fit(Config(), 16 * GIB) == Config()
    everything = Config.from_toml((ROOT / "conf" / "metastore.toml").read_text())
    assert memory_plan.fit(everything, 200 * MIB).limits == memory_plan.fit(Config(), 200 * MIB).limits
    config = Config(raft={"max_tail_bytes": "31MiB"}, storage={"rocksdb": {"cache_size": "100MiB"}})
    small = memory_plan.fit(config, 200 * MIB)
    assert small.raft.max_tail_bytes == 31 * MIB and small.storage.rocksdb.cache_size == 100 * MIB
    assert small.wal.read_ahead_cache < config.wal.read_ahead_cache
    assert small.storage.rocksdb.write_buffer_size < config.storage.rocksdb.write_buffer_size
    assert small.limits.max_inflight_bytes >= small.raft.batch_max_bytes
    assert memory_plan.fit(small, 200 * MIB) == small


@pytest.mark.parametrize(("quota", "warned"), [("0B", False), ("40MiB", False), ("150MiB", True), (-1, True)])
def test_a_quota_that_does_not_fit_is_warned_of(
    quota: str | int, warned: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The memory of this process depends on the tests that ran in it before.
    monkeypatch.setattr(memory_limit, "used", lambda _kind=memory_limit.RESIDENT: 60 * MIB)
    limit = Limit(360 * MIB, "the test's limit")
    memory = memory_guard.Memory(Config(limits={"quota_bytes": quota}), limit)
    with caplog.at_level(logging.WARNING, "metastore.memory"):
        memory.share_out(peers=False, contents=True)
    assert memory.plan is not None
    text = caplog.text
    assert bool(text) == warned
    if warned:
        words = "no limit" if quota == -1 else str(150 * MIB)
        assert words in text and str(limit.nbytes) in text and str(memory.plan.quota) in text
    assert memory.quota == {"0B": memory.plan.quota, "40MiB": 40 * MIB, "150MiB": 150 * MIB, -1: -1}[quota]


def test_no_memory_at_all_is_told_in_one_sentence() -> None:
    memory = memory_guard.Memory(Config(), Limit(memory_limit.used() + 4 * MIB, "the test's limit"))
    memory.share_out(peers=False, contents=True)
    block = b"x" * (4 * MIB)
    with pytest.raises(errors.OutOfMemory) as failure:
        memory.check()
    text = failure.value.text
    assert "more memory" in text and 'storage.engine = "rocksdb"' in text and "the test's limit" in text
    assert not memory.fits(1, 1) and memory.short() and block


class Watch:
    """Replaces `memory_guard.Memory`: it reports that there is no room for two states, and notes the peak."""

    peak = 0

    def fits(self, nbytes: int, records: int) -> bool:
        return False

    def check(self) -> None:
        self.peak = max(self.peak, held_now())


def test_a_snapshot_that_does_not_fit_beside_the_old_contents_takes_their_place(tmp_path: Path) -> None:
    def filled(tag: bytes, index: int) -> MemoryEngine:
        engine = MemoryEngine()
        pairs = [(tag + b"%06d" % n, b"v" * 300) for n in range(20_000)]
        engine.restore([*pairs, (APPLIED_KEY, struct.pack("<QQ", index, 1))])
        return engine

    store = SnapshotStore(tmp_path, chunk_size=65536, make_codec=lambda: PayloadCodec(None, 64, 1 << 20))
    source = filled(b"new", 9)
    info = store.save(Header(9, 1, ConfState((1,)), 5, 1, 99, 65536), Walker(source.view()))
    contents = source.scan(b"", None, False, 0)
    del source
    while reclaim():
        pass
    before, snapshots, installed = held_now(), Snapshots.__new__(Snapshots), []
    snapshots.engine, snapshots.memory = filled(b"old", 3), Watch()  # type: ignore[assignment]
    whole = held_now() - before
    snapshots.store, snapshots.failpoints, snapshots._install = store, Failpoints(), None
    snapshots.catalogue = Catalogue(info)
    snapshots._installed = lambda info, fresh, done: done()  # type: ignore[method-assign]
    snapshots.install(Snapshot(9, 1, ConfState((1,))), lambda: installed.append(True))
    assert installed and snapshots.engine.scan(b"", None, False, 0) == contents
    assert 0.9 * whole < snapshots.memory.peak - before < 1.3 * whole, "both were in memory"  # type: ignore[union-attr]
