"""A Config in a program: pickled, copied, sent to other processes, turned into tables and back, with paths and
seconds."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest

from metastore import Config, errors

EVERYTHING = Config(
    node={"name": "n2", "data_dir": Path("/srv/data")},
    listen={"client": ["127.0.0.1:1", "[::1]:2"]},
    cluster={"initial": {"n1": "10.0.0.1:2380", "n2": "10.0.0.2:2380"}, "begin_wait": 0},
    storage={"engine": "rocksdb", "rocksdb": {"cache_size": "1MiB"}},
    raft={"tick_interval": 0.25, "batch_max_time": "3ms"},
    limits={"quota_bytes": -1, "request_timeout": 7},
)


# Its tables may come not only from a program, but from another Config.
TAKEN = Config(
    node={"name": "n1"}, cluster={"initial": EVERYTHING.cluster.initial}, listen=EVERYTHING.to_dict()["listen"]
)


def send(config: Config, answers: Any) -> None:
    answers.put((config.to_dict(), config))


@pytest.mark.parametrize("config", [Config(), EVERYTHING, TAKEN], ids=["defaults", "everything", "taken"])
def test_a_config_comes_back_from_wherever_it_goes(config: Config) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(config, protocol))
        assert again == config and again.to_dict() == config.to_dict()
    assert copy.copy(config) == copy.deepcopy(config) == config
    assert copy.deepcopy({"a": [config]})["a"][0] == config
    back = Config.from_dict(config.to_dict())
    assert back == config and repr(back) == repr(config)
    assert Config.from_dict(back.changed(raft={"election_ticks": 20}).to_dict()).raft.election_ticks == 20


def test_what_comes_back_can_be_changed_and_is_frozen() -> None:
    again = pickle.loads(pickle.dumps(EVERYTHING))
    changed = again.changed(raft={"batch_max_time": 0.5})
    assert changed.raft.batch_max_time == 0.5 and changed.raft.tick_interval == 0.25
    assert EVERYTHING.raft.batch_max_time == 0.003
    with pytest.raises(AttributeError):
        again.raft = changed.raft  # type: ignore[misc]


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_a_process_gets_it(method: str) -> None:
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    process = context.Process(target=send, args=(EVERYTHING, answers))  # type: ignore[attr-defined]
    process.start()
    tables, config = answers.get(timeout=60)
    process.join(60)
    assert config == EVERYTHING and tables == EVERYTHING.to_dict() and process.exitcode == 0


def test_a_program_gives_paths_and_seconds() -> None:
    assert Config(node={"data_dir": Path("a") / "b"}).node.data_dir == "a/b"
    config = Config(raft={"tick_interval": 0.05, "batch_max_time": 0}, limits={"request_timeout": 3})
    assert (config.raft.tick_interval, config.raft.batch_max_time, config.limits.request_timeout) == (0.05, 0.0, 3.0)
    assert Config().changed(limits={"drain_timeout": 0.5}).limits.drain_timeout == 0.5


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        ({"limits": {"request_timeout": True}}, "limits.request_timeout: expected a duration"),
        ({"limits": {"request_timeout": float("nan")}}, "limits.request_timeout: nan is not between 1ms and 1d"),
        ({"limits": {"request_timeout": -1}}, "limits.request_timeout: -1 is not between"),
        ({"limits": {"request_timeout": 10**400}}, "limits.request_timeout: 10+ is not between"),
        ({"node": {"data_dir": b"/x"}}, "node.data_dir: expected a string, found bytes"),
        ({"node": {"name": Path("n1")}}, "node.name: expected a string, found PosixPath"),
        ({"node": 5}, "node: expected a table, found an integer"),
    ],
)
def test_what_a_program_gives_wrongly(tables: dict[str, Any], text: str) -> None:
    for make in (lambda: Config(**tables), lambda: Config.from_dict(tables), lambda: Config().changed(**tables)):
        with pytest.raises(errors.ConfigError, match=text) as caught:
            make()
        assert isinstance(caught.value, ValueError)


def test_a_text_still_wants_units() -> None:
    for call in (
        lambda: Config.from_toml("[limits]\nrequest_timeout = 7"),
        lambda: Config.load(env={"METASTORE_LIMITS__REQUEST_TIMEOUT": "7"}),
        lambda: Config.load(overrides=["limits.request_timeout=7.5"]),
    ):
        with pytest.raises(errors.ConfigError, match="expected a duration"):
            call()
