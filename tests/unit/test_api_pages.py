"""The HTTP pages, Maintenance, Cluster and Health over a made-up node, asked by grpcio, etcdctl and HTTP."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from http import client as http_client
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from support import etcdctl
from support.echo_server import Running
from support.processes import wait_until

from metastore import errors
from metastore._core.grpc import Limits
from metastore._core.h2_request import Request
from metastore.api import pb
from metastore.api.common import CLUSTER_VERSION, ETCD_VERSION
from metastore.api.ports import Ports
from metastore.api.services import FIRST_OTHER, make_pages, make_services


@dataclass
class Member:
    id: int
    name: str
    peer_urls: tuple[str, ...] = ("http://127.0.0.1:2380",)
    client_urls: tuple[str, ...] = ("http://127.0.0.1:2379",)
    is_learner: bool = False


@dataclass
class FakeNode:
    """A node that answers what the test sets."""

    name: str = "n1"
    member_id: int = 0xFEDCBA9876543210
    cluster_id: int = 0xCDF818194E3A8C32
    revision: int = 42
    raft_term: int = 3
    raft_index: int = 99
    applied_index: int = 98
    leader_id: int = 0xFEDCBA9876543210
    db_size: int = 20480
    db_size_in_use: int = 16384
    raised: list[tuple[int, int]] = field(default_factory=list)
    serving: bool = True
    read_error: errors.MetaStoreError | None = None
    reads: int = 0
    quota_bytes: int = 2 << 30
    changes: errors.MetaStoreError | None = None
    slow: str = ""
    is_learner: bool = False
    local_error: errors.MetaStoreError | None = None
    held: list[Callable[[errors.MetaStoreError | None], object]] | None = None  # reads that are not confirmed yet

    def disk_trouble(self) -> str:
        return self.slow

    def members(self) -> list[Member]:
        return [Member(self.member_id, self.name), Member(7, "n2", is_learner=True)]

    def alarms(self) -> list[tuple[int, int]]:
        return self.raised

    def healthy(self) -> bool:
        return self.serving

    def confirm_read(self, done: Callable[[errors.MetaStoreError | None], object]) -> None:
        self.reads += 1
        if self.held is not None:
            self.held.append(done)
        else:
            done(self.read_error)

    def local_read(self) -> None:
        if self.local_error is not None:
            raise self.local_error

    def about(self) -> dict[str, Any]:
        return {"version": "0.1.0", "engine": "memory", "uptime_seconds": 1.5, "peers": []}

    def change_alarm(
        self, action: int, member: int, alarm: int, done: Callable[..., object], caller: Request | None
    ) -> None:
        assert caller is not None and not caller.answered
        done([(member, alarm)], self.changes)

    def defragment(self, done: Callable[..., object]) -> None:
        done(self.changes)

    def hash_kv(self, revision: int, whole: bool, gone: Callable[[], bool], done: Callable[..., object]) -> None:
        assert not gone()
        info = SimpleNamespace(hash=0xFFFFFFFF, revision=revision, current=11, compact_revision=-1)
        done(None if self.changes else info, self.changes)

    def stats(self) -> dict[str, float]:
        return {"wal_syncs_total": 12, "wal_queued_bytes": 3.5}


def ports_of(node: FakeNode) -> Ports:
    """Return one node behind all ports."""
    return Ports(**dict.fromkeys((port.name for port in fields(Ports)), cast(Any, node)))


class ApiServer:
    """The services and pages over a FakeNode, as a `conn.Server`."""

    def __init__(self, node: FakeNode) -> None:
        self.services, self.health = make_services(ports_of(node))
        self.method_table = self.services.method_table
        self.limits = Limits()
        self.pages = make_pages(ports_of(node))
        self.http = self.pages.http

    def handle(self, requests: list[Request]) -> None:
        for request in requests:
            if request.method < FIRST_OTHER:
                # etcdctl's health check reads a key. This is the answer of a store without keys.
                request.complete(pb.RangeResponse().SerializeToString())
            else:
                self.services.dispatch(request)


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def running(node: FakeNode) -> Iterator[Running]:
    with Running(server=ApiServer(node)) as running:
        yield running


@pytest.fixture
def call(running: Running) -> Iterator[Callable[..., Any]]:
    with grpc.insecure_channel(running.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:

        def call(path: str, request: Any, reply: Any) -> Any:
            method = channel.unary_unary(
                path,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=reply.FromString,
            )
            return method(request, timeout=10)

        yield call


def get(running: Running, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    connection = http_client.HTTPConnection(running.host, running.port, timeout=10)
    connection.request(method, path)
    response = connection.getresponse()
    answer = response.status, response.headers["content-type"], response.read()
    connection.close()
    return answer


# ---- services


def test_status(node: FakeNode, call: Callable[..., Any]) -> None:
    status = call("/etcdserverpb.Maintenance/Status", pb.StatusRequest(), pb.StatusResponse)
    assert status == pb.StatusResponse(
        header=pb.ResponseHeader(cluster_id=node.cluster_id, member_id=node.member_id, revision=42, raft_term=3),
        version=ETCD_VERSION,
        dbSize=20480,
        leader=node.member_id,
        raftIndex=99,
        raftTerm=3,
        raftAppliedIndex=98,
        dbSizeInUse=16384,
    )
    node.leader_id = 0
    node.raised = [(7, 1)]
    status = call("/etcdserverpb.Maintenance/Status", pb.StatusRequest(), pb.StatusResponse)
    assert list(status.errors) == ["etcdserver: no leader", "memberID:7 alarm:NOSPACE "]
    node.is_learner = True
    assert call("/etcdserverpb.Maintenance/Status", pb.StatusRequest(), pb.StatusResponse).isLearner


def test_reported_version_has_progress_requests() -> None:
    assert tuple(int(part) for part in ETCD_VERSION.split(".")) >= (3, 5, 13)


def test_alarms(node: FakeNode, call: Callable[..., Any]) -> None:
    node.raised = [(1, 1), (2, 2)]
    path = "/etcdserverpb.Maintenance/Alarm"
    reply = call(path, pb.AlarmRequest(), pb.AlarmResponse)
    assert [(alarm.memberID, alarm.alarm) for alarm in reply.alarms] == [(1, 1), (2, 2)]
    assert reply.header.revision == 42
    reply = call(path, pb.AlarmRequest(alarm=2), pb.AlarmResponse)
    assert [alarm.memberID for alarm in reply.alarms] == [2]
    assert node.reads == 2
    reply = call(path, pb.AlarmRequest(action=1, memberID=7, alarm=1), pb.AlarmResponse)
    assert [(alarm.memberID, alarm.alarm) for alarm in reply.alarms] == [(7, 1)]
    node.changes = errors.InvalidAlarm()
    with pytest.raises(grpc.RpcError) as failure:
        call(path, pb.AlarmRequest(action=3, alarm=1), pb.AlarmResponse)
    assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    node.read_error = errors.NoLeader()
    with pytest.raises(grpc.RpcError) as failure:
        call(path, pb.AlarmRequest(), pb.AlarmResponse)
    assert failure.value.details() == errors.NoLeader.default


def test_hash_and_defragment(node: FakeNode, call: Callable[..., Any]) -> None:
    path = "/etcdserverpb.Maintenance/"
    info = call(path + "HashKV", pb.HashKVRequest(revision=9), pb.HashKVResponse)
    assert (info.hash, info.hash_revision, info.compact_revision, info.header.revision) == (0xFFFFFFFF, 9, -1, 11)
    assert call(path + "Hash", pb.HashRequest(), pb.HashResponse).hash == 0xFFFFFFFF
    assert call(path + "Defragment", pb.DefragmentRequest(), pb.DefragmentResponse).header.revision == 42
    node.changes = errors.Compacted()
    for method, request, reply in (
        ("HashKV", pb.HashKVRequest(), pb.HashKVResponse),
        ("Defragment", pb.DefragmentRequest(), pb.DefragmentResponse),
    ):
        with pytest.raises(grpc.RpcError) as failure:
            call(path + method, request, reply)
        assert (failure.value.code(), failure.value.details()) == (
            grpc.StatusCode.OUT_OF_RANGE,
            errors.Compacted.default,
        )


def test_member_list(node: FakeNode, call: Callable[..., Any]) -> None:
    path = "/etcdserverpb.Cluster/MemberList"
    members = call(path, pb.MemberListRequest(), pb.MemberListResponse).members
    assert [(m.ID, m.name, list(m.peerURLs), list(m.clientURLs), m.isLearner) for m in members] == [
        (node.member_id, "n1", ["http://127.0.0.1:2380"], ["http://127.0.0.1:2379"], False),
        (7, "n2", ["http://127.0.0.1:2380"], ["http://127.0.0.1:2379"], True),
    ]
    assert node.reads == 0
    call(path, pb.MemberListRequest(linearizable=True), pb.MemberListResponse)
    assert node.reads == 1
    node.read_error = errors.NoLeader()
    with pytest.raises(grpc.RpcError) as failure:
        call(path, pb.MemberListRequest(linearizable=True), pb.MemberListResponse)
    assert (failure.value.code(), failure.value.details()) == (grpc.StatusCode.UNAVAILABLE, errors.NoLeader.default)


def test_malformed_and_unknown(call: Callable[..., Any]) -> None:
    class Raw:
        def SerializeToString(self) -> bytes:
            return b"\x08"

    with pytest.raises(grpc.RpcError) as failure:
        call("/etcdserverpb.Cluster/MemberList", Raw(), pb.MemberListResponse)
    assert failure.value.code() == grpc.StatusCode.INTERNAL
    for path, text in [
        ("/etcdserverpb.Maintenance/Downgrade", "unknown method Downgrade for service etcdserverpb.Maintenance"),
        ("/etcdserverpb.Auth/AuthStatus", "unknown service etcdserverpb.Auth"),
    ]:
        with pytest.raises(grpc.RpcError) as failure:
            call(path, pb.StatusRequest(), pb.StatusResponse)
        assert (failure.value.code(), failure.value.details()) == (grpc.StatusCode.UNIMPLEMENTED, text)


def test_a_mistake_in_one_call_is_that_calls_only(
    node: FakeNode, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[tuple[int, int]]:
        raise KeyError("a bug")

    monkeypatch.setattr(node, "alarms", broken)
    with pytest.raises(grpc.RpcError) as failure:
        call("/etcdserverpb.Maintenance/Alarm", pb.AlarmRequest(), pb.AlarmResponse)
    assert failure.value.code() == grpc.StatusCode.UNKNOWN
    assert call("/etcdserverpb.Cluster/MemberList", pb.MemberListRequest(), pb.MemberListResponse).members


def test_health_check(node: FakeNode, call: Callable[..., Any]) -> None:
    path, kind = "/grpc.health.v1.Health/Check", pb.HealthCheckResponse
    assert call(path, pb.HealthCheckRequest(), kind).status == kind.SERVING
    node.serving = False
    assert call(path, pb.HealthCheckRequest(), kind).status == kind.NOT_SERVING
    with pytest.raises(grpc.RpcError) as failure:
        call(path, pb.HealthCheckRequest(service="no"), kind)
    assert (failure.value.code(), failure.value.details()) == (grpc.StatusCode.NOT_FOUND, "unknown service")


def test_health_watch(node: FakeNode, running: Running) -> None:
    kind = pb.HealthCheckResponse
    server = running.server
    with grpc.insecure_channel(running.address) as channel:
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            response_deserializer=kind.FromString,
            request_serializer=lambda message: message.SerializeToString(),
        )
        unknown = watch(pb.HealthCheckRequest(service="no"), timeout=10)
        assert next(unknown).status == kind.SERVICE_UNKNOWN
        unknown.cancel()
        stream = watch(pb.HealthCheckRequest(), timeout=10)
        assert next(stream).status == kind.SERVING
        running.call(server.health.changed)  # nothing has changed
        node.serving = False
        running.call(server.health.changed)
        assert next(stream).status == kind.NOT_SERVING
        node.serving = True
        running.call(server.health.changed)
        assert next(stream).status == kind.SERVING
        running.call(server.health.shutdown)
        assert next(stream).status == kind.NOT_SERVING
        with pytest.raises(grpc.RpcError) as failure:
            next(stream)
        assert failure.value.code() == grpc.StatusCode.UNAVAILABLE
        channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10)
        assert running.call(lambda: len(server.health._watchers)) == 0


def run_etcdctl(program: str, running: Running, *words: str) -> str:
    run = subprocess.run(
        [program, "--endpoints", running.address, *words],
        capture_output=True,
        text=True,
        env={"ETCDCTL_API": "3"},
        timeout=30,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr


@pytest.mark.parametrize("version", sorted(etcdctl.binaries()))
def test_etcdctl(node: FakeNode, running: Running, version: str) -> None:
    program = etcdctl.binaries()[version]
    [status] = json.loads(run_etcdctl(program, running, "endpoint", "status", "-w", "json"))
    assert status["Status"]["version"] == ETCD_VERSION and status["Status"]["raftAppliedIndex"] == 98
    members = json.loads(run_etcdctl(program, running, "member", "list", "-w", "json"))["members"]
    assert [member["name"] for member in members] == ["n1", "n2"]
    assert "is healthy" in run_etcdctl(program, running, "endpoint", "health")
    assert run_etcdctl(program, running, "alarm", "list") == ""
    assert run_etcdctl(program, running, "alarm", "disarm") == ""
    node.raised = [(7, 1)]
    assert run_etcdctl(program, running, "alarm", "list").strip() == "memberID:7 alarm:NOSPACE"


# ---- pages


def test_version_page(running: Running) -> None:
    status, kind, body = get(running, "/version")
    assert (status, kind) == (200, "application/json")
    assert json.loads(body) == {"etcdserver": ETCD_VERSION, "etcdcluster": CLUSTER_VERSION}


def test_health_page(node: FakeNode, running: Running) -> None:
    assert get(running, "/health") == (200, "application/json", b'{"health":"true","reason":""}')
    assert node.reads == 1
    node.read_error = errors.Timeout()
    for query in ("", "?serializable=false", "?serializable"):
        status, _kind, body = get(running, f"/health{query}")
        assert (status, json.loads(body)["reason"]) == (503, f"RANGE ERROR:{errors.Timeout.default}")
    node.leader_id = 0
    assert get(running, "/health")[::2] == (503, b'{"health":"false","reason":"RAFT NO LEADER"}')
    node.leader_id, node.read_error = 1, None
    node.raised = [(7, 1)]
    for query in ("", "?serializable=true"):
        assert get(running, f"/health{query}")[::2] == (503, b'{"health":"false","reason":"ALARM NOSPACE"}')
    assert get(running, "/health?exclude=NOSPACE")[0] == 200
    node.raised = []
    node.serving = False
    assert get(running, "/health")[0] == 503


def test_health_of_one_member_alone(node: FakeNode, running: Running) -> None:
    """A liveness probe must kill neither a member of a minority nor a member that is stopping."""
    node.leader_id, node.serving, node.read_error = 0, False, errors.NoLeader()
    assert get(running, "/health?serializable=true")[::2] == (200, b'{"health":"true","reason":""}')
    assert get(running, "/livez")[0] == 200
    assert node.reads == 0
    node.local_error = errors.Corrupt()
    assert get(running, "/health?serializable=true")[0] == 503
    assert errors.Corrupt.default.encode() in get(running, "/livez")[2]


def test_livez_and_readyz(node: FakeNode, running: Running) -> None:
    assert get(running, "/livez") == (200, "text/plain; charset=utf-8", b"ok\n")
    assert get(running, "/readyz")[::2] == (200, b"ok\n")
    checks = ["data_corruption", "serializable_read", "linearizable_read", "non_learner", "disk"]
    good = "".join(f"[+]{name} ok\n" for name in checks)
    assert get(running, "/readyz?verbose")[::2] == (200, f"{good}ok\n".encode())
    assert get(running, "/livez?verbose")[::2] == (200, b"[+]serializable_read ok\nok\n")
    node.leader_id = 0
    status, kind, body = get(running, "/readyz")
    assert (status, kind) == (503, "text/plain; charset=utf-8")
    bad = "[-]linearizable_read failed: etcdserver: no leader"
    assert body.decode() == good.replace("[+]linearizable_read ok", bad)
    assert get(running, "/readyz?exclude=linearizable_read&exclude=unknown")[0] == 200
    node.leader_id, node.is_learner = 1, True
    assert b"[-]non_learner failed: not supported for learner\n" in get(running, "/readyz")[2]
    node.is_learner, node.slow = False, "a sync of the log has been under way for 3.0 s"
    assert b"[-]disk failed: a sync of the log has been under way for 3.0 s\n" in get(running, "/readyz")[2]
    assert get(running, "/readyz?exclude=disk")[0] == 200
    node.raised = [(7, 2)]
    assert b"[-]data_corruption failed: alarm activated: CORRUPT\n" in get(running, "/readyz")[2]


def test_each_check_has_its_page(node: FakeNode, running: Running) -> None:
    assert get(running, "/livez/serializable_read?verbose")[2] == b"[+]serializable_read ok\nok\n"
    for name in ("data_corruption", "serializable_read", "linearizable_read", "non_learner", "disk"):
        assert get(running, f"/readyz/{name}")[::2] == (200, b"ok\n")
    node.read_error = errors.Timeout()
    assert get(running, "/readyz/linearizable_read")[::2] == (
        503,
        f"[-]linearizable_read failed: {errors.Timeout.default}\n".encode(),
    )
    assert get(running, "/readyz/serializable_read")[0] == 200
    assert get(running, "/livez/linearizable_read")[0] == 404


def test_answers_that_come_later_keep_their_order(node: FakeNode, running: Running) -> None:
    node.held = []
    with socket.create_connection((running.host, running.port), timeout=10) as sock:
        for path in ("/health", "/version", "/health?a=b"):
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        wait_until(lambda: node.held, 10, "a read")
        running.call(lambda: node.held[0](None))
        # A connection has one request under way at a time.
        wait_until(lambda: len(node.held) == 2, 10, "the second read")
        running.call(lambda: node.held[1](errors.Timeout()))
        answers = b""
        while answers.count(b'"reason"') < 2:
            answers += sock.recv(4096)
    first, second, third = answers.split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200") and b'"health":"true"' in first
    assert second.startswith(b"200") and b"etcdserver" in second
    assert third.startswith(b"503") and errors.Timeout.default.encode() in third


def test_whoever_leaves_before_the_answer_misses_it(node: FakeNode, running: Running) -> None:
    node.held = []
    with socket.create_connection((running.host, running.port), timeout=10) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: node.held, 10, "a read")
    wait_until(lambda: running.call(lambda: len(running.listener.conns)) == 0, 10, "the end of the connection")
    running.call(lambda: node.held[0](None))
    node.held = None
    assert get(running, "/health")[0] == 200


def test_a_stop_waits_for_answers_that_come_later(node: FakeNode, running: Running) -> None:
    node.held = []
    with socket.create_connection((running.host, running.port), timeout=10) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: node.held, 10, "a read")
        running.call(running.listener.retire)
        running.call(running.listener.shutdown)
        running.call(lambda: node.held[0](None))
        answer = b""
        while data := sock.recv(4096):
            answer += data
    assert answer.startswith(b"HTTP/1.1 200") and b"Connection: close" in answer


def test_metrics_page(node: FakeNode, running: Running) -> None:
    status, kind, body = get(running, "/metrics")
    assert status == 200 and kind.startswith("text/plain; version=0.0.4")
    lines = body.decode().splitlines()
    assert "etcd_server_has_leader 1.0" in lines
    assert "metastore_wal_syncs_total 12.0" in lines and "metastore_wal_queued_bytes 3.5" in lines
    assert "# TYPE metastore_wal_syncs_total counter" in lines
    assert any(line.startswith("process_resident_memory_bytes ") for line in lines)
    node.leader_id = 0
    assert "etcd_server_has_leader 0.0" in get(running, "/metrics")[2].decode().splitlines()


def test_metrics_can_be_switched_off(node: FakeNode) -> None:
    assert make_pages(ports_of(node), metrics=False).http("GET", "/metrics", {}, b"")[0] == 404


def test_pages_import_nothing_while_they_are_served(node: FakeNode) -> None:
    """An import needs file descriptors and holds up the loop."""
    pages, before = make_pages(ports_of(node)), set(sys.modules)
    for path in ("/metrics", "/health", "/livez", "/readyz", "/status", "/version"):
        pages.http("GET", path, {}, b"")
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/", "GET", 404),
        ("/nothing", "GET", 404),
        ("/version/", "GET", 404),
        ("/version", "POST", 405),
        ("/health", "DELETE", 405),
        ("/version", "HEAD", 405),
        ("/health", "HEAD", 405),
        ("/readyz/data_corruption", "HEAD", 405),
        ("/metrics", "HEAD", 200),
        ("/status", "HEAD", 200),
        ("/health?" + "a=b&" * 100, "GET", 400),
    ],
)
def test_other_requests(running: Running, path: str, method: str, status: int) -> None:
    assert get(running, path, method)[0] == status


def test_malformed_target(node: FakeNode) -> None:
    assert make_pages(ports_of(node)).http("GET", "http://[x/version", {}, b"")[0] == 400


def test_status_page(running: Running) -> None:
    status, kind, body = get(running, "/status")
    found = json.loads(body)
    assert (status, kind) == (200, "application/json")
    assert (found["name"], found["member_id"], found["raft_term"]) == ("n1", "fedcba9876543210", 3)
    assert found["log"] == {"syncs_total": 12, "queued_bytes": 3.5}
    assert (found["version"], found["engine"], found["uptime_seconds"], found["peers"]) == ("0.1.0", "memory", 1.5, [])
