"""Joining a cluster that is there: real members asked by `join`, and a member that joins and catches up."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from metastore import Config, Node, errors, join
from metastore.localcluster import free_ports


def configured(folder: Path, name: str, port: int, **cluster: Any) -> Config:
    return Config.from_dict(
        {
            "node": {"name": name, "data_dir": str(folder / name)},
            "listen": {"client": "127.0.0.1:0", "peer": f"127.0.0.1:{port}"},
            "cluster": {"token": "joiners", "initial": {name: f"127.0.0.1:{port}"}, **cluster},
            "wal": {"segment_size": "1MiB"},
        }
    )


def add(node: Node, port: int, learner: bool) -> Any:
    """Have `node` add a member; its record."""
    outcome: Future[Any] = Future()
    server = node._running()

    def done(member: Any, error: errors.MetaStoreError | None) -> None:
        outcome.set_exception(error) if error is not None else outcome.set_result(member)

    server.call_soon_threadsafe(lambda: server.view.add_member([f"http://127.0.0.1:{port}"], learner, done))
    return outcome.result(10)


@pytest.fixture
def ports() -> list[int]:
    return free_ports(3)


@pytest.fixture
def first(tmp_path: Path, ports: list[int]) -> Iterator[Node]:
    with Node(configured(tmp_path, "n1", ports[0])) as node:
        yield node


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "PATIENCE", 0.2)


def test_a_learner_joins_and_has_everything(first: Node, tmp_path: Path, ports: list[int]) -> None:
    first.put("before", "1")
    member = add(first, ports[1], learner=True)
    first.put("between", "2")
    both = {"n1": f"127.0.0.1:{ports[0]}", "n2": f"127.0.0.1:{ports[1]}"}
    with Node(configured(tmp_path, "n2", ports[1], initial=both, state="existing")) as second:
        assert second._running().view.member_id == member.id
        assert [kv.key for kv in second.range("a", "z", serializable=True).kvs] == [b"before", b"between"]
        first.put("after", "3")
        assert second.get("after") is not None
    # Once joined, the directory says who it is; `state` has no say any more.
    with Node(configured(tmp_path, "n2", ports[1], initial=both, state="new")) as again:
        assert again._running().view.member_id == member.id
        assert again.get("after") is not None


def test_who_was_not_added_is_refused(first: Node, ports: list[int]) -> None:
    add(first, ports[1], learner=True)
    with pytest.raises(errors.ConfigError, match=f"no member has the peer URL http://127.0.0.1:{ports[2]}"):
        join.join([f"127.0.0.1:{ports[0]}"], "joiners", f"127.0.0.1:{ports[2]}", "x")


def test_another_token_is_refused(first: Node, ports: list[int]) -> None:
    add(first, ports[1], learner=True)
    with pytest.raises(errors.ConfigError, match="cluster token is 'joiners' here"):
        join.join([f"127.0.0.1:{ports[0]}"], "others", f"127.0.0.1:{ports[1]}", "x")


def test_a_wiped_directory_cannot_join_again(first: Node, tmp_path: Path, ports: list[int]) -> None:
    add(first, ports[1], learner=True)
    both = {"n1": f"127.0.0.1:{ports[0]}", "n2": f"127.0.0.1:{ports[1]}"}
    config = configured(tmp_path, "n2", ports[1], initial=both, state="existing")
    with Node(config):
        pass
    elsewhere = configured(tmp_path / "wiped", "n2", ports[1], initial=both, state="existing")
    with pytest.raises(errors.ConfigError, match="has joined before with another data directory"):
        Node(elsewhere).start()


def test_nobody_there(ports: list[int]) -> None:
    with pytest.raises(errors.ConfigError, match=r"cannot join the cluster: .*refused"):
        join.join([f"127.0.0.1:{ports[0]}"], "joiners", f"127.0.0.1:{ports[1]}", "x")
    with pytest.raises(errors.ConfigError, match="must name a member that is there"):
        join.join([f"127.0.0.1:{ports[1]}"], "joiners", f"127.0.0.1:{ports[1]}", "x")
