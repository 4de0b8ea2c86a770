"""`metastore wal dump|verify` on the log of a node that was killed, of a running one, and on damaged copies."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import messages as m
from support.client import op
from support.load import History, Load
from support.processes import Node, Server, StartError

from metastore.cli import main as cli
from metastore.cli import wal as waltool
from metastore.errors import DamagedData
from metastore.snapshots.format import Header, header_size
from metastore.storage.wal import Wal

pytestmark = pytest.mark.node_only

SMALL = {"wal.segment_size": '"64KiB"'}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data directory of a node that did one operation of each kind and was killed. Tests must not change it."""
    node = Node(tmp_path_factory.mktemp("wal") / "data", SMALL).start()
    with node.client() as client:
        client.put(b"plain", b"value")
        client.put(b"\x1b[31m\xff", b"x" * 2000)
        client.delete(b"a", b"z")
        client.txn([m.Compare(key=b"if", version=0)], [op(m.PutRequest(key=b"then"))], [op(m.RangeRequest(key=b"no"))])
        client.compact(3)
        client.call(m.AlarmRequest(action=1, alarm=1, memberID=7))
        client.call(m.AlarmRequest(action=2, alarm=1, memberID=7))
        for number in range(30):
            client.put(b"k%05d" % number, random.Random(number).randbytes(5000))
    node.kill()
    yield node.data_dir
    node.discard()


@pytest.fixture
def copy(killed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(killed, tmp_path / "copy"))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["wal", *map(str, arguments)])
    return code, *capsys.readouterr()


def verified(capsys: pytest.CaptureFixture[str], path: Path) -> tuple[int, dict[str, Any]]:
    code, out, _ = run(capsys, "verify", path, "--json")
    return code, json.loads(out)


def contents(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def newest(path: Path) -> Path:
    """Return the segment that was written last."""
    with waltool.Log(path / "wal") as log:
        assert log.recovered is not None
        return next(file.path for file in log.files if file.generation == log.recovered.last_generation)


def test_verify_tells_what_is_there(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(copy)
    code, text = verified(capsys, copy)
    assert (code, text["verdict"], text["damage"], text["node"]) == (0, "good", "", "not running")
    assert (text["last_index"], text["term"], text["snapshot_index"]) == (39, 1, 0) and text["commit"] in (38, 39)
    states = " ".join(segment["state"] for segment in text["segments"])
    # The kill may have come while the next segment was being made.
    assert re.fullmatch("(proven )+newest( prepared)?", states)
    assert sum(segment["entries"] for segment in text["segments"]) == 39
    assert text["segments"][0]["indexes"].startswith("1-")
    code, out, err = run(capsys, "verify", copy / "wal")
    assert code == 0 and "verdict" in out and "newest" in out and err == ""
    assert contents(copy) == before


def test_dump_shows_every_operation(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "dump", copy)
    assert code == 0 and "\x1b" not in out
    for text in ("key=plain value_bytes=5", r"key=\x1b[31m\xff value_bytes=2000", "key=a range_end=z", "revision=3"):
        assert text in out
    assert "txn" in out and "if=[if] then=[put:then] else=[range:no]" in out and "action=publish" in out
    assert "action=raise alarm=NOSPACE member=0000000000000007" in out and "action=clear" in out
    records = [json.loads(line) for line in run(capsys, "dump", copy, "--json")[1].splitlines()]
    assert {record["type"] for record in records} >= {"START", "ENTRY", "HARD_STATE"}
    entries = [record for record in records if record["type"] == "ENTRY"]
    assert [entry["index"] for entry in entries] == list(range(1, 40))
    assert entries[3]["compressed"] and entries[3]["operations"][0]["value_bytes"] == 2000
    assert all(record["proven"] for record in records[:-2])
    some = [json.loads(x) for x in run(capsys, "dump", copy, "--from", 20, "--limit", 5, "--json")[1].splitlines()]
    assert len(some) == 5 and some[0]["index"] == 20 and "unreadable" not in out
    lines = run(capsys, "dump", copy, "--from", 20, "--limit", 5)[1].splitlines()
    assert lines[0] == some[0]["file"], "offsets without their file"


def test_verify_judges_like_a_start(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes are flipped here and there. What one refuses, the other refuses too, with the same words."""
    last = newest(copy)
    good = last.read_bytes()
    _, text = verified(capsys, copy)
    row = next(segment for segment in text["segments"] if segment["file"] == last.name)
    end = row["proven_to"] + row["unproven"]
    verdicts = set()
    for at in [0, 30, 70, *range(64, end, max(1, end // 12)), row["proven_to"] + 4, row["proven_to"] + 50, end + 100]:
        data = bytearray(good)
        data[at] ^= 1
        last.write_bytes(data)
        code, text = verified(capsys, copy)
        shutil.rmtree(tmp_path / "opened", ignore_errors=True)
        shutil.copytree(copy / "wal", tmp_path / "opened")
        try:
            Wal.open(tmp_path / "opened", segment_size=64 << 10).close()
            reason = ""
        except DamagedData as error:
            reason = error.text.replace(str(tmp_path / "opened"), str(copy / "wal"))
        assert text["damage"] == reason and code == (4 if reason else 0), at
        verdicts.add(code)
    assert verdicts == {0, 4}


def test_an_unfinished_group_is_shown_as_such(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = newest(copy)
    _, text = verified(capsys, copy)
    (row,) = (segment for segment in text["segments"] if segment["file"] == last.name)
    assert row["unproven"] and not row["note"]
    data = bytearray(last.read_bytes())
    data[row["proven_to"] + 4] ^= 0xFF
    last.write_bytes(data)
    code, text = verified(capsys, copy)
    (after,) = (segment for segment in text["segments"] if segment["file"] == last.name)
    assert code == 0 and f"cut at {row['proven_to']} to " in after["note"]
    # The record that proved the group before is gone with it.
    assert after["proven_to"] + after["unproven"] == row["proven_to"]


def test_damage_has_a_file_and_an_offset(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = sorted(copy.glob("wal/*.wal"))[0]
    data = bytearray(first.read_bytes())
    data[2000] ^= 1
    first.write_bytes(data)
    code, out, err = run(capsys, "verify", copy)
    assert code == 4 and err.startswith(f"metastore: {first}: offset ") and "damaged" in out
    code, out, err = run(capsys, "dump", copy)
    assert code == 4 and "key=plain" in out and str(first) in err, "what can be read before it is shown"
    first.unlink()
    code, _, err = run(capsys, "verify", copy)
    assert code == 4 and "missing" in err


def test_a_running_node_is_left_alone(fresh: Callable[..., Server], capsys: pytest.CaptureFixture[str]) -> None:
    """This goes on while segments are filled, released and recycled."""
    eager = {"maintenance.snapshot_count": "20", "maintenance.snapshot_min_size": '"1KiB"'}
    node = fresh(settings={**SMALL, **eager}).start()
    history = History()
    with node.client() as client:
        load = Load(client, history, expect_end=False).start()
        for _ in range(8):
            load.wait_acks(load.acked + 20)
            code, text = verified(capsys, node.data_dir)
            assert (code, text["node"]) == (0, "running"), text
            assert run(capsys, "dump", node.data_dir, "--json")[0] == 0
        load.stop()
        history.check(client)
    assert node.stop() == 0


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data directory of a node whose log begins with a snapshot. Tests must not change it."""
    node = Node(tmp_path_factory.mktemp("cut") / "data", SMALL).start()
    with node.client() as client:
        for number in range(3):
            client.put(b"key", random.Random(number).randbytes(5000))
            client.backup()  # a snapshot is taken for it
    assert node.stop() == 0
    yield node.data_dir
    node.discard()


@pytest.mark.parametrize("width", [80, 200])
def test_a_terminal_breaks_no_name(cut: Path, width: int) -> None:
    """Names must be copyable: the output is a table if it fits, else lines."""
    reader, writer = os.openpty()
    env = {**os.environ, "COLUMNS": str(width), "TERM": "xterm"}
    command = [sys.executable, "-m", "metastore", "wal", "verify", str(cut)]
    with subprocess.Popen(command, env=env, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        output = b""
        with contextlib.suppress(OSError):  # this is how a terminal ends
            while part := os.read(reader, 1 << 16):
                output += part
        assert process.wait(60) == 0
    os.close(reader)
    for path in (*(cut / "wal").glob("*.wal"), *(cut / "snap").glob("*.snap")):
        assert path.name.encode() in output, output.decode()
    name = next((cut / "snap").glob("*.snap")).name
    assert (f"\u2502 {name} ".encode() in output) is (width == 200)


def test_verify_looks_at_the_snapshots_that_a_start_would_take(
    cut: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = Node(Path(shutil.copytree(cut, tmp_path / "copy")))

    def judged() -> tuple[int, str, list[str]]:
        code, text = verified(capsys, node.data_dir)
        return code, text["damage"], [one["state"] for one in text["snapshots"]]

    newest, second, third = sorted(node.data_dir.glob("snap/*.snap"), reverse=True)
    assert judged() == (0, "", ["good", "good", "older"])
    good = newest.read_bytes()
    newest.write_bytes(good[:200] + bytes([good[200] ^ 1]) + good[201:])
    assert judged() == (0, "", ["damaged", "good", "older"])
    contents = second.read_bytes()
    second.write_bytes(contents[:-10])
    code, damage, states = judged()
    assert (code, states) == (4, ["damaged", "damaged", "older"])
    assert newest.name in damage and second.name in damage and third.name not in damage
    with pytest.raises(StartError) as refused:
        node.start()
    assert refused.value.returncode == 4
    # An engine with files of its own may go on from these.
    (node.data_dir / "engine").mkdir()
    (node.data_dir / "engine" / "engine.json").write_text("{}")
    assert judged()[0] == 0 and "its own data" in run(capsys, "verify", node.data_dir)[1]
    # A log alone is judged alone.
    shutil.copytree(cut / "wal", tmp_path / "alone")
    assert "good, its snapshots aside" in run(capsys, "verify", tmp_path / "alone")[1]
    # The snapshot is of another cluster, and the text is that of a start.
    shutil.rmtree(node.data_dir / "engine")
    header = Header.decode(good[: header_size(good)])
    foreign = replace(header, cluster_id=7)
    newest.write_bytes(foreign.encode() + good[header_size(good) :])
    code, damage, states = judged()
    assert (code, states[0]) == (4, "foreign") and "of cluster 0000000000000007" in damage


def test_what_is_no_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path, tmp_path / "none"):
        code, _, err = run(capsys, "verify", path)
        assert code == 2 and "there is no write-ahead log" in err
    with pytest.raises(SystemExit) as failure:
        cli.main(["wal", "repair"])
    assert failure.value.code == 2


def test_a_reader_that_has_seen_enough(killed: Path) -> None:
    argv = [sys.executable, "-m", "metastore", "wal", "dump", str(killed), "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(20) == 0
