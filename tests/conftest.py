"""Fixtures of the end-to-end tests, and the two switches of the test run.

`--server etcd` runs the end-to-end tests against a real etcd in place of a node: what fails there is wrong in the test.
`--long` adds the tests in folders named `long`, which take minutes to hours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# This comes before any import of it, so a helper that finds a difference shows it as a test does.
pytest.register_assert_rewrite("support")

from support import etcdctl, runs
from support.client import Client
from support.cluster import Cluster
from support.processes import Etcd, Server, make_server

from metastore._core import build_info

# The moment at which a test began.
BEGAN = pytest.StashKey[runs.Seconds]()

# The time of an example shows how busy the machine is, and which build this is.
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
    """Mark tests by folder. A run of everything that names no tests, markers or words leaves the clusters out."""
    for item in items:
        for mark in runs.marks_of(item.path):
            item.add_marker(mark)
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    item.stash[BEGAN] = runs.seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Fail a test that is skipped where it could run, and one that CI runs four times if it takes too long."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        why = runs.wrongly_skipped(getattr(item, "originalname", item.name))
        if why:
            report.outcome = "failed"
            report.longrepr = why
    if call.when != "call" or not report.passed or runs.marks_of(item.path):
        return report
    why = runs.too_long(runs.seconds().since(item.stash[BEGAN]), build_info()["flavour"])
    if why:
        report.outcome = "failed"
        report.longrepr = why
    return report


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real etcd for the whole run."""
    with Etcd(tmp_path_factory.mktemp("reference") / "data", durable=False) as server:
        yield server
        server.discard()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Server]:
    """One server under test for the whole run. Tests keep to keys under their own `prefix`."""
    with make_server(pytestconfig.getoption("--server"), tmp_path_factory.mktemp("server") / "data") as server:
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
    """Make servers under test with data directories of their own. They are not started, and killed at the end of the
    test."""
    servers: list[Server] = []

    def make(name: str = "data", **options: Any) -> Server:
        servers.append(make_server(pytestconfig.getoption("--server"), tmp_path / name, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.discard()


@pytest.fixture
def fresh_etcd(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Make real etcds with data directories of their own. They are not started, and killed at the end of the test."""
    servers: list[Server] = []

    def make(name: str = "etcd", **options: Any) -> Server:
        servers.append(Etcd(tmp_path / name, **{"durable": False, **options}))
        return servers[-1]

    yield make
    for server in servers:
        server.discard()


@pytest.fixture
def cluster_of(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Make clusters (`Cluster`'s arguments) in folders of their own. They are not started, and killed at the end of the
    test."""
    clusters: list[Cluster] = []

    def make(size: int = 3, **options: Any) -> Cluster:
        clusters.append(Cluster(tmp_path / f"cluster-{len(clusters)}", size, **options))
        return clusters[-1]

    yield make
    for cluster in clusters:
        cluster.discard()
    for cluster in clusters:
        cluster.check_logs()


@pytest.fixture(params=sorted(etcdctl.binaries()))
def etcdctl_program(request: pytest.FixtureRequest) -> str:
    """Path of etcdctl, once for each version."""
    return etcdctl.binaries()[request.param]
