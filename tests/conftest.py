"""Fixtures of the end-to-end tests, and the two switches of the test run.

`--server etcd` runs the end-to-end tests against a real etcd in place of a node: what fails there is wrong in the
test. `--long` adds the tests marked `long`, which take minutes to hours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from support import etcdctl
from support.client import Client
from support.cluster import Cluster
from support.processes import Etcd, Node, Server

# The modules whose tests are about whole clusters; they take half of the time of all. A run of everything that names no
# tests, markers or words leaves them out: `-m cluster` runs them.
CLUSTERS = {"test_bench", "test_cluster", "test_cluster_life", "test_lease_reads", "test_linearizable", "test_sim"}
CLUSTERS |= {"test_async_node", "test_backup_cluster", "test_catchup", "test_snapshot_cluster", "test_upkeep_cluster"}
CLUSTERS |= {"test_beginning", "test_cluster_space", "test_mixed_cluster", "test_rocksdb_cluster", "test_roster_order"}
# The longest of the others, of which the build and the version of Python matter to none.
ONCE = {"test_crash", "test_differential", "test_localcluster", "test_no_space", "test_rocksdb_crash"}
ONCE |= {"test_snapshot_node"}


# How long an example takes says how busy the machine is, and which build this is.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--server", choices=("node", "etcd"), default="node", help="what the end-to-end tests talk to")
    parser.addoption("--long", action="store_true", help="also the tests that take minutes to hours")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: takes minutes to hours; runs with --long only")
    config.addinivalue_line("markers", "cluster: whole clusters, real or simulated; runs with -m cluster")
    config.addinivalue_line("markers", "once: long, and the same on every Python; tox leaves it out, see tox.ini")
    config.addinivalue_line("markers", "node_only: about a node itself; does not run with --server etcd")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in CLUSTERS:
            item.add_marker(pytest.mark.cluster)
        if item.path.stem in ONCE:
            item.add_marker(pytest.mark.once)
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not (
        config.getoption("markexpr") or config.getoption("keyword")
    )
    left_out = [
        item
        for item in items
        if (item.get_closest_marker("cluster") and everything and not config.getoption("--long"))
        or (item.get_closest_marker("long") and not config.getoption("--long"))
        or (item.get_closest_marker("node_only") and config.getoption("--server") == "etcd")
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def make_server(config: pytest.Config, data_dir: Path, **options: Any) -> Server:
    """A server of the kind under test; `options` are those of Node and say nothing to etcd.

    A node's log segments are small here, for the disk's sake.
    """
    if config.getoption("--server") == "etcd":
        return Etcd(data_dir, durable=False)
    settings = {"wal.segment_size": '"4MiB"', **options.pop("settings", {})}
    return Node(data_dir, settings, **options)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real etcd for the whole run."""
    with Etcd(tmp_path_factory.mktemp("reference") / "data", durable=False) as server:
        yield server
        server.discard()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Server]:
    """One server under test for the whole run; tests keep to keys under their own `prefix`."""
    with make_server(pytestconfig, tmp_path_factory.mktemp("server") / "data") as server:
        yield server
        server.discard()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A key prefix of this test's own, ending in a slash."""
    return f"{request.node.originalname}-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:8]}/"


@pytest.fixture
def fresh(tmp_path: Path, pytestconfig: pytest.Config) -> Iterator[Callable[..., Server]]:
    """Makes servers under test with data directories of their own; not started, killed at the end of the test."""
    made: list[Server] = []

    def make(name: str = "data", **options: Any) -> Server:
        made.append(make_server(pytestconfig, tmp_path / name, **options))
        return made[-1]

    yield make
    for server in made:
        server.discard()


@pytest.fixture
def fresh_etcd(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes real etcds with data directories of their own; not started, killed at the end of the test."""
    made: list[Server] = []

    def make(name: str = "etcd", **options: Any) -> Server:
        made.append(Etcd(tmp_path / name, **{"durable": False, **options}))
        return made[-1]

    yield make
    for server in made:
        server.discard()


@pytest.fixture
def cluster_of(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Makes clusters (`Cluster`'s arguments) in folders of their own; not started, killed at the end of the test."""
    made: list[Cluster] = []

    def make(size: int = 3, **options: Any) -> Cluster:
        made.append(Cluster(tmp_path / f"cluster-{len(made)}", size, **options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.discard()
    for cluster in made:
        cluster.check_logs()


@pytest.fixture(params=sorted(etcdctl.binaries()))
def etcdctl_program(request: pytest.FixtureRequest) -> str:
    """Path of etcdctl, once for each version."""
    return etcdctl.binaries()[request.param]
