"""The program hears its signals whichever thread gets them. A node inside another program leaves them alone."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import TESTS
from support.processes import Node, node_argv, signal_thread, takers, threads_of, wait_until

from metastore import Config, errors
from metastore import Node as EmbeddedNode
from metastore.cli import main as cli

READY = "ready to serve client requests"


@pytest.mark.node_only
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_another_thread_gets_is_heard(number: int, tmp_path: Path) -> None:
    node = Node(tmp_path / "data")
    with node:
        process = node.running()
        others = [thread for thread in takers(process.pid, number) if thread != process.pid]
        assert others, "the thread that the program runs the node from"
        signal_thread(process.pid, others[0], number)
        assert process.wait(20) == 0
        assert f"stopping on {signal.Signals(number).name}" in process.log and "cli: stopped" in process.log


def test_a_node_inside_a_program_takes_no_signals(tmp_path: Path) -> None:
    before = threads_of(os.getpid())
    config = Config(node={"data_dir": str(tmp_path)}, listen={"client": "127.0.0.1:0"})
    config = config.changed(storage={"engine": "rocksdb"}, wal={"segment_size": "1MiB"})
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with EmbeddedNode(config) as node:
        node.put("a", "b")
        threads = threads_of(os.getpid()) - before
        assert len(threads) >= 3
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM, signal.SIGCHLD):
            assert not threads & set(takers(os.getpid(), number)), signal.Signals(number).name
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


def test_a_node_that_was_stopped_does_not_start(tmp_path: Path) -> None:
    """A signal in the first moment leads to this."""
    node = EmbeddedNode(Config(node={"data_dir": str(tmp_path / "data")}))
    node.stop()
    with pytest.raises(errors.Stopped):
        node.start()
    assert node.wait(0) and not (tmp_path / "data").exists()


@pytest.mark.parametrize(("later", "code"), [(0.0, 0), (cli.SAME_SIGNAL + 0.1, 128 + signal.SIGTERM)])
def test_a_second_signal_ends_a_stop_that_hangs_but_not_at_once(later: float, code: int) -> None:
    """`timeout` sends its signal to the process and then to the group."""
    text = "import support.stucknode, metastore.cli.main, metastore.config\n"
    text += "metastore.cli.main.run(metastore.config.Config(), lambda _: support.stucknode.Stuck(%r))"
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    argv = [sys.executable, "-c", text % later]
    run = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=20, check=False)
    assert run.returncode == code, run.stderr
    assert ("second SIGTERM: exit without draining" in run.stderr) == bool(later)


@pytest.mark.node_only
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_after_a_quick_stop_changes_nothing(number: int, tmp_path: Path) -> None:
    """The node has stopped by then, and the interpreter is about to end."""
    with Node(tmp_path / "data") as node:
        process = node.running()
        process.popen.send_signal(number)
        process.wait_line("cli: stopped")
        process.popen.send_signal(number)
        assert process.popen.wait(20) == 0, process.log


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A node whose standard error is a file; it is ready."""
    path = tmp_path / "node.log"
    with path.open("wb") as output:
        process = subprocess.Popen(node_argv(tmp_path / "data", {"wal.segment_size": '"1MiB"'}), stderr=output)
    try:
        wait_until(lambda: READY in path.read_text(), what="a ready node")
        yield process, path
    finally:
        process.kill()
        process.wait(20)


@pytest.mark.node_only
def test_hangup_opens_the_log_again(log_file: tuple[subprocess.Popen[bytes], Path]) -> None:
    process, path = log_file
    old = path.rename(path.with_suffix(".1"))
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: path.exists() and "newly opened" in path.read_text(), what="a new log")
    size = old.stat().st_size
    # If the file cannot be opened, the old one is used on.
    path.unlink()
    path.mkdir()
    process.send_signal(signal.SIGHUP)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        process.send_signal(number)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0 and old.stat().st_size == size


@pytest.mark.node_only
def test_signals_without_a_meaning_are_told(tmp_path: Path) -> None:
    with Node(tmp_path / "data") as node:
        process = node.running()
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            process.send_signal(number)
            process.wait_line(f"{signal.Signals(number).name}.*(means nothing|no file)")
        with node.client() as client:
            client.put(b"a", b"b")
        assert process.stop() == 0


def read_until(terminal: int, text: bytes) -> bytes:
    """Return what a terminal prints up to `text`. Fails if it prints nothing for half a minute."""
    printed = b""
    while text not in printed:
        assert select.select([terminal], [], [], 30)[0], printed
        printed += os.read(terminal, 4096)
    return printed


@pytest.mark.node_only
def test_a_terminal_that_is_closed_ends_the_node(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        node_argv(tmp_path / "data", {"wal.segment_size": '"1MiB"'}),
        stderr=theirs,
        # Under nohup a child inherits that SIGHUP is ignored. A closed terminal must not end the node then.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    os.close(theirs)
    try:
        output = read_until(ours, READY.encode())
        process.send_signal(signal.SIGHUP)
        output += read_until(ours, b"cli: stopped")
        assert process.wait(20) == 0 and b"stopping on SIGHUP" in output
    finally:
        process.kill()
        process.wait(20)
        os.close(ours)


@pytest.mark.node_only
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_cleanly_within_two_seconds(number: int, tmp_path: Path) -> None:
    node = Node(tmp_path / "data")
    times: list[float] = []
    # The best of a few counts, because other processes share the machine.
    while not times or (min(times) >= 2.0 and len(times) < 4):
        process = node.start().running()
        began = time.monotonic()
        assert process.stop(number=number) == 0
        times.append(time.monotonic() - began)
        node.process = None
        assert "stopped" in process.log
    assert min(times) < 2.0, times
