"""The blocks of docs/embedding.md and the programs in examples/embedding are right: they run and print what is said."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from support import ROOT

pytestmark = pytest.mark.node_only

PAGE = (ROOT / "docs" / "embedding.md").read_text()
BLOCKS = re.findall(r"<!-- run: python -->\n```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)
EXAMPLES = ROOT / "examples" / "embedding"


def test_every_block_of_the_page_is_run() -> None:
    assert len(BLOCKS) == PAGE.count("```python") == PAGE.count("<!-- run: python -->") >= 3


@pytest.mark.parametrize(("program", "output"), BLOCKS)
def test_a_block_prints_what_the_page_says(program: str, output: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == output
    assert not list(tmp_path.iterdir())


def test_the_page_has_its_sections() -> None:
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert {"Life", "Threads", "Forks", "Signals", "Errors", "Timeouts", "Bulk", "Types", "asyncio"} <= set(headings)
    assert not re.search(r"^## .*\n+(?=## |\Z)", PAGE, re.MULTILINE), "a heading without text"


@pytest.mark.parametrize("folder", [":memory:", "data"])
def test_the_asyncio_example(folder: str, tmp_path: Path) -> None:
    argv = [sys.executable, str(EXAMPLES / "jobs_asyncio.py"), "--jobs", "30", "--workers", "4", "--data-dir", folder]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (0, "30 jobs are done, 30 were taken\n"), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ([] if folder == ":memory:" else ["data"])


def test_the_pytest_example(tmp_path: Path) -> None:
    # The settings of this project are not those of a user's.
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        os.devnull,
        "--rootdir",
        str(tmp_path),
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*argv, str(EXAMPLES / "test_with_a_node.py")], capture_output=True, text=True, timeout=60, cwd=tmp_path,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_preforked_web_application(tmp_path: Path) -> None:
    argv = [sys.executable, str(EXAMPLES / "preforked_web.py"), "--port", "0", "--workers", "2", "--data-dir", "data"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True) as owner:
        try:
            assert owner.stdout is not None
            port = re.fullmatch(r"serving on port (\d+)\n", owner.stdout.readline())
            assert port is not None
            url = f"http://127.0.0.1:{port[1]}/visits"
            workers = set()
            count = 0
            while len(workers) < 2 and count < 2000:
                count += 1
                with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=30) as reply:
                    answer = re.fullmatch(r"/visits (\d+) from worker (\d+)\n", reply.read().decode())
                assert answer is not None and int(answer[1]) == count, "a worker missed what another one wrote"
                workers.add(int(answer[2]))
            with urllib.request.urlopen(url, timeout=30) as reply:
                assert reply.read().startswith(b"/visits %d " % count)
            assert len(workers) == 2 and owner.pid not in workers
            owner.send_signal(signal.SIGTERM)
            assert owner.wait(30) == 0
            for worker in workers:
                with pytest.raises(ProcessLookupError):
                    os.kill(worker, 0)
        finally:
            if owner.poll() is None:
                os.killpg(owner.pid, signal.SIGKILL)


LOGS = """
import logging, os, sys
seen = []
class Keep(logging.Handler):
    def emit(self, record):
        seen.append(record)
before = (list(logging.getLogger("metastore").handlers), logging.getLogger("metastore").level)
logging.basicConfig(level=logging.DEBUG, handlers=[Keep()])
from metastore import Config, Node, errors
config = Config(node={"data_dir": "data"}, listen={"client": "127.0.0.1:0"}, wal={"sync": "async"})
with Node(config) as node:
    node.put_many((str(n), "v") for n in range(100))
    future = node.futures.put("k", "v")
    future.add_done_callback(lambda future: 1 / 0)
    future.result()
    future.add_done_callback(lambda future: 1 / 0)
    try:
        Node(config).start()
    except errors.DataDirInUse:
        pass
logging.getLogger().handlers.clear()
assert before == (logging.getLogger("metastore").handlers, logging.getLogger("metastore").level)
assert any("ready to serve" in record.getMessage() for record in seen)
assert any(record.exc_info and record.exc_info[0] is ZeroDivisionError for record in seen)
names = {record.name.partition(".")[0] for record in seen}
assert names == {"metastore"}, names
"""


def test_logging_is_the_only_output(tmp_path: Path) -> None:
    """All of it below one logger, which the program may set up as it likes."""
    done = subprocess.run(
        [sys.executable, "-c", LOGS], capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
