"""etcdctl, in both versions, prints for a node what it prints for a real etcd."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from support import etcdctl
from support import messages as m
from support.client import Client
from support.differ import normalised
from support.processes import Server

Make = Callable[..., Server]


@dataclass(frozen=True)
class Command:
    """One call: arguments, standard input, and whether Debian's 3.4 knows the flags."""

    line: str
    stdin: str | None = None
    since_35: bool = False


PUTS = [
    Command("put a 1"),
    Command("put a 2 --prev-kv"),
    Command("put b two -w json"),
    Command("put c 3 -w fields"),
    Command("put d", stdin="from standard input"),
    Command("put e --ignore-value"),
    Command("put a --ignore-value"),
    Command("put a 3 --ignore-lease"),
    Command("put a 3 --lease=1234"),
    Command("put dir/x 1"),
    Command("put dir/y 2"),
    Command("put dir/y 3"),
]

GETS = [
    Command("get a"),
    Command("get missing"),
    Command("get a -w json"),
    Command("get a -w fields"),
    Command("get a -w protobuf --hex"),
    Command("get a --hex"),
    Command("get a --print-value-only"),
    Command("get a --keys-only"),
    Command("get a d"),
    Command("get d a"),
    Command("get a d --limit 2 -w json"),
    Command("get dir/ --prefix"),
    Command("get dir/ --prefix --keys-only"),
    Command("get dir/ --prefix -w json"),
    Command("get --prefix "),
    Command("get --from-key c"),
    Command("get --from-key  -w json"),
    Command("get --prefix  --count-only -w fields", since_35=True),
    Command("get a --rev 2"),
    Command("get a --rev 1"),
    Command("get a --rev 100000"),
    Command("get a --rev -1"),
    Command("get a --consistency s"),
    Command("get a --consistency l"),
    *[
        Command(f"get --prefix  --order {order} --sort-by {target} -w json")
        for order in ("ASCEND", "DESCEND")
        for target in ("CREATE", "KEY", "MODIFY", "VALUE", "VERSION")
    ],
    Command("get --prefix  --sort-by MODIFY --limit 3"),
]

CHANGES = [
    Command("txn", stdin='value("a") = "2"\n\nput x 1\nget a\nget dir/ --prefix\n\nget b\n\n'),
    Command("txn", stdin='value("a") = "9"\n\nput x 1\n\nget b\ndel b --prev-kv\n\n'),
    Command("txn -w json", stdin='version("a") > "0"\ncreate("a") > "1"\nmod("a") < "99"\n\ndel dir/x\n\n\n'),
    Command("txn", stdin="\nput same 1\nput same 2\n\n\n"),
    Command("txn", stdin='lease("a") = "0"\n\nput with-lease 1 --lease=77\n\n\n'),
    Command("txn", stdin="\nget a --rev 2\nget a --rev 100000\n\n\n"),
    Command("del a --prev-kv"),
    Command("del a"),
    Command("del c -w json"),
    Command("del dir/ --prefix"),
    Command("del --from-key x --prev-kv"),
    Command("del b z"),
    Command("compaction 4"),
    Command("compaction 4"),
    Command("compaction 3"),
    Command("compaction 100000"),
    Command("compaction 6 --physical"),
    Command("get a --rev 3"),
    Command("get --prefix  --rev 6"),
    Command("del --prefix "),
    Command("get --prefix  -w json"),
]


def arguments(line: str) -> list[str]:
    """Split `line` at single blanks. Two blanks in a row stand for an empty argument."""
    return line.rstrip(" ").split(" ") + ([""] if line.endswith(" ") else [])


def seen(output: Any) -> tuple[int, str, list[str]]:
    """Return exit code, standard output and error lines without the parts that differ between two clusters."""
    out = re.sub(r'"(cluster_id|member_id|raft_term)":\d+', r'"\1":N', output.stdout)
    out = re.sub(r'"(ClusterID|MemberID|RaftTerm)" : \d+', r'"\1" : N', out)
    errors = [line for line in output.stderr.splitlines() if line.startswith("Error")]
    return output.returncode, out, errors


def seen_protobuf(output: Any) -> tuple[int, Any, list[str]]:
    """Return the same as `seen` for a RangeResponse that was printed with -w protobuf."""
    reply = m.RangeResponse.FromString(output.stdout.encode("utf-8", "surrogateescape"))
    return output.returncode, normalised(reply), output.stderr.splitlines()


@pytest.mark.parametrize("group", ["gets", "changes"])
def test_same_output_as_with_etcd(group: str, etcdctl_program: str, fresh: Make, fresh_etcd: Make) -> None:
    debian = etcdctl_program == etcdctl.binaries()["debian"]
    expected, actual = fresh_etcd().start(), fresh().start()
    for command in PUTS + (GETS if group == "gets" else CHANGES):
        if command.since_35 and debian:
            continue
        args = arguments(command.line)
        results = [etcdctl.run(etcdctl_program, s.address, *args, stdin=command.stdin) for s in (expected, actual)]
        view = seen_protobuf if "protobuf" in args else seen
        assert view(results[1]) == view(results[0]), f"etcdctl {command.line}: {results[1].stderr}"


def test_endpoint_status(etcdctl_program: str, server: Server, client: Client) -> None:
    put = client.put(b"status-probe", b"x" * 1000)
    status = client.status()
    result = etcdctl.run(etcdctl_program, server.address, "endpoint", "status", "-w", "json")
    assert result.returncode == 0, result.stderr
    (entry,) = json.loads(result.stdout)
    shown_status = entry["Status"]
    assert entry["Endpoint"] == server.address
    assert shown_status["header"]["cluster_id"] == put.header.cluster_id != 0
    assert shown_status["header"]["member_id"] == put.header.member_id != 0
    assert shown_status["header"]["revision"] >= put.header.revision
    assert shown_status["leader"] == shown_status["header"]["member_id"]
    assert shown_status["raftTerm"] == shown_status["header"]["raft_term"] > 0
    assert shown_status["raftIndex"] >= shown_status["raftAppliedIndex"] >= status.raftAppliedIndex > 0
    assert shown_status["dbSize"] >= shown_status["dbSizeInUse"] > 1000
    assert shown_status["version"] == status.version
    table = etcdctl.run(etcdctl_program, server.address, "endpoint", "status", "-w", "table")
    assert table.returncode == 0, table.stderr
    row = [cell.strip() for cell in table.stdout.splitlines()[3].strip("|").split("|")]
    assert row[0] == server.address
    assert row[1] == f"{put.header.member_id:x}"
    assert row[4:6] == ["true", "false"]


def test_endpoint_health(etcdctl_program: str, server: Server) -> None:
    result = etcdctl.run(etcdctl_program, server.address, "endpoint", "health", "-w", "json")
    assert result.returncode == 0, result.stderr
    (entry,) = json.loads(result.stdout)
    assert entry["endpoint"] == server.address
    assert entry["health"] is True
    plain = etcdctl.run(etcdctl_program, server.address, "endpoint", "health")
    assert "is healthy: successfully committed proposal" in plain.stdout + plain.stderr


def test_member_list(etcdctl_program: str, server: Server, client: Client) -> None:
    member_id = client.status().header.member_id
    result = etcdctl.run(etcdctl_program, server.address, "member", "list")
    assert result.returncode == 0, result.stderr
    fields = result.stdout.strip().split(", ")
    assert fields[0] == f"{member_id:x}"
    assert fields[1] == "started"
    assert fields[5] == "false"
    (member,) = json.loads(etcdctl.run(etcdctl_program, server.address, "member", "list", "-w", "json").stdout)[
        "members"
    ]
    assert member["ID"] == member_id
    assert member["name"] == fields[2]
    assert member["peerURLs"] == [fields[3]]
    assert member["clientURLs"] == [fields[4]]
    assert all(url.startswith("http://") for url in member["peerURLs"] + member["clientURLs"])


def test_alarm_list_is_empty(etcdctl_program: str, server: Server) -> None:
    result = etcdctl.run(etcdctl_program, server.address, "alarm", "list")
    assert (result.returncode, result.stdout) == (0, "")
