"""Failpoints are off by default, parse their settings strictly, and do what these say."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from metastore.errors import ConfigError
from metastore.failpoints import BLOCK, ERROR, NAMES, OFF, PANIC, SLEEP, Action, Failpoints, parse_action


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("off", Action()),
        ("panic", Action(PANIC)),
        ("panic@10", Action(PANIC, skip=9)),
        ("sleep(1.25)", Action(SLEEP, micros=1250)),
        (" sleep(0) ", Action(SLEEP)),
        ("error", Action(ERROR, error=errno.EIO)),
        ("error(ENOSPC)", Action(ERROR, error=errno.ENOSPC)),
        ("error(28)", Action(ERROR, error=28)),
        ("block", Action(BLOCK)),
        ("block(/tmp/x)@2", Action(BLOCK, path="/tmp/x", skip=1)),
    ],
)
def test_actions_are_read(text: str, action: Action) -> None:
    assert parse_action(text) == action


@pytest.mark.parametrize(
    "text",
    [
        "",
        "explode",
        "panic(1)",
        "off()",
        "sleep",
        "sleep()",
        "sleep(soon)",
        "sleep(-1)",
        "sleep(nan)",
        "sleep(1e9)",
        "error(ENOTHING)",
        "error(99999)",
        "error()",
        "panic@0",
        "panic@x",
        "panic @2",
        "sleep(1",
    ],
)
def test_wrong_actions_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="failpoint action"):
        parse_action(text)


def test_the_environment_is_read_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METASTORE_FAILPOINTS", raising=False)
    assert not Failpoints.from_environment().active
    monkeypatch.setenv("METASTORE_FAILPOINTS", "wal.before_sync=sleep(5); apply.before=error ;")
    points = Failpoints.from_environment()
    assert points.active
    assert points.get("wal.before_sync") == Action(SLEEP, micros=5000)
    assert points.get("apply.before").kind == ERROR
    assert points.get("apply.after").kind == OFF
    for wrong in ("wal.before_sync", "wal.nothing=off", "=off"):
        monkeypatch.setenv("METASTORE_FAILPOINTS", wrong)
        with pytest.raises(ConfigError):
            Failpoints.from_environment()


def test_every_name_is_free_when_off_and_fails_when_told() -> None:
    points = Failpoints()
    for name in NAMES:
        points.hit(name)
        points.set(name, "error(ENOSPC)")
        with pytest.raises(OSError, match=name) as failure:
            points.hit(name)
        assert failure.value.errno == errno.ENOSPC
        points.set(name, "off")
        points.hit(name)
    assert not points.active


def test_the_first_hits_may_pass() -> None:
    points = Failpoints("apply.after=error@3")
    points.hit("apply.after")
    points.hit("apply.after")
    with pytest.raises(OSError, match=r"apply\.after"):
        points.hit("apply.after")
    with pytest.raises(OSError, match=r"apply\.after"):
        points.hit("apply.after")


def test_sleep_takes_its_time() -> None:
    points = Failpoints("peer.send=sleep(20)")
    begin = time.monotonic()
    points.hit("peer.send")
    assert time.monotonic() - begin >= 0.02


def blocked(points: Failpoints, name: str) -> threading.Thread:
    thread = threading.Thread(target=points.hit, args=(name,), daemon=True)
    thread.start()
    return thread


def test_a_block_holds_until_the_action_changes() -> None:
    points = Failpoints("apply.before=block")
    thread = blocked(points, "apply.before")
    thread.join(0.05)
    assert thread.is_alive()
    points.clear()
    thread.join(10)
    assert not thread.is_alive()


def test_a_block_with_a_file_holds_while_the_file_is_there(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    points = Failpoints(f"apply.before=block({gate})")
    points.hit("apply.before")
    gate.touch()
    thread = blocked(points, "apply.before")
    thread.join(0.05)
    assert thread.is_alive()
    gate.unlink()
    thread.join(10)
    assert not thread.is_alive()


def test_a_panic_leaves_no_time_to_tidy_up() -> None:
    code = (
        "import atexit; atexit.register(print, 'tidy', flush=True)\n"
        "from metastore.failpoints import Failpoints\n"
        "Failpoints.from_environment().hit('snapshot.rename')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"METASTORE_FAILPOINTS": "snapshot.rename=panic"},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b""


def test_who_is_bound_is_kept_in_step_until_unbound() -> None:
    points = Failpoints("wal.after_sync=panic")
    actions: list[Action] = []
    unbind = points.bind("wal.after_sync", actions.append)
    points.set("wal.after_sync", "sleep(1)")
    points.set("wal.before_sync", "sleep(1)")
    points.clear()
    unbind()
    points.set("wal.after_sync", "error")
    assert [action.kind for action in actions] == [PANIC, SLEEP, OFF]
