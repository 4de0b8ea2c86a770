"""A small blocking etcd client for tests: grpcio underneath, messages or raw bytes on top, errors as (code, text)."""

from __future__ import annotations

from typing import Any, Self

import grpc

from . import messages as m

MIB = 1 << 20

# Method -> (path, response type). The type of a request says which method it goes to.
METHODS = {
    "RangeRequest": ("/etcdserverpb.KV/Range", m.RangeResponse),
    "PutRequest": ("/etcdserverpb.KV/Put", m.PutResponse),
    "DeleteRangeRequest": ("/etcdserverpb.KV/DeleteRange", m.DeleteRangeResponse),
    "TxnRequest": ("/etcdserverpb.KV/Txn", m.TxnResponse),
    "CompactionRequest": ("/etcdserverpb.KV/Compact", m.CompactionResponse),
    "StatusRequest": ("/etcdserverpb.Maintenance/Status", m.StatusResponse),
    "AlarmRequest": ("/etcdserverpb.Maintenance/Alarm", m.AlarmResponse),
    "DefragmentRequest": ("/etcdserverpb.Maintenance/Defragment", m.TYPES["DefragmentResponse"]),
    "HashRequest": ("/etcdserverpb.Maintenance/Hash", m.TYPES["HashResponse"]),
    "HashKVRequest": ("/etcdserverpb.Maintenance/HashKV", m.TYPES["HashKVResponse"]),
    "MemberListRequest": ("/etcdserverpb.Cluster/MemberList", m.MemberListResponse),
    "LeaseGrantRequest": ("/etcdserverpb.Lease/LeaseGrant", m.TYPES["LeaseGrantResponse"]),
    "LeaseRevokeRequest": ("/etcdserverpb.Lease/LeaseRevoke", m.TYPES["LeaseRevokeResponse"]),
    "LeaseTimeToLiveRequest": ("/etcdserverpb.Lease/LeaseTimeToLive", m.TYPES["LeaseTimeToLiveResponse"]),
    "LeaseLeasesRequest": ("/etcdserverpb.Lease/LeaseLeases", m.TYPES["LeaseLeasesResponse"]),
    "HealthCheckRequest": ("/grpc.health.v1.Health/Check", m.HealthCheckResponse),
}

# The same for calls that change the cluster or its leader.
CLUSTER_METHODS = {
    "MemberAddRequest": ("/etcdserverpb.Cluster/MemberAdd", m.MemberAddResponse),
    "MemberRemoveRequest": ("/etcdserverpb.Cluster/MemberRemove", m.MemberRemoveResponse),
    "MemberUpdateRequest": ("/etcdserverpb.Cluster/MemberUpdate", m.MemberUpdateResponse),
    "MemberPromoteRequest": ("/etcdserverpb.Cluster/MemberPromote", m.MemberPromoteResponse),
    "MoveLeaderRequest": ("/etcdserverpb.Maintenance/MoveLeader", m.MoveLeaderResponse),
}

# The same for calls that may wait for others.
LOCK_METHODS = {
    "LockRequest": ("/v3lockpb.Lock/Lock", m.TYPES["LockResponse"]),
    "UnlockRequest": ("/v3lockpb.Lock/Unlock", m.TYPES["UnlockResponse"]),
    "CampaignRequest": ("/v3electionpb.Election/Campaign", m.TYPES["CampaignResponse"]),
    "ProclaimRequest": ("/v3electionpb.Election/Proclaim", m.TYPES["ProclaimResponse"]),
    "LeaderRequest": ("/v3electionpb.Election/Leader", m.TYPES["LeaderResponse"]),
    "ResignRequest": ("/v3electionpb.Election/Resign", m.TYPES["ResignResponse"]),
}
ROUTES = METHODS | CLUSTER_METHODS | LOCK_METHODS


class Failure(Exception):
    """A call that ended with a status other than OK: the numeric gRPC code and the text that the client sees."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"code={code} text={text!r}")
        self.code = code
        self.text = text


class Client:
    """One channel to one address; several threads may use it. `timeout` (seconds) bounds every call, and `metadata`
    goes with every call except futures. `policy` says how several addresses ("ipv4:A,B,C") are used."""

    def __init__(
        self,
        address: str,
        timeout: float = 10.0,
        metadata: tuple[tuple[str, str], ...] = (),
        policy: str = "pick_first",
    ) -> None:
        self.address = address
        self.timeout = timeout
        self.metadata = metadata
        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_http_proxy", 0),
                ("grpc.lb_policy_name", policy),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 200),
            ],
        )
        self._raw: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel. Calls in flight fail with CANCELLED."""
        self._channel.close()

    def stub(self, path: str) -> Any:
        """Return the unary call at `path`, bytes in and bytes out."""
        if path not in self._raw:
            self._raw[path] = self._channel.unary_unary(path)
        return self._raw[path]

    def raw(self, path: str, body: bytes, timeout: float | None = None) -> bytes:
        """Send `body` as it is and return the reply's bytes. Raises Failure."""
        try:
            return self.stub(path)(body, timeout=timeout or self.timeout, metadata=self.metadata)
        except grpc.RpcError as error:
            raise Failure(error.code().value[0], error.details() or "") from None

    def stream(self, path: str) -> Any:
        """The call at `path` with a stream each way, bytes in and bytes out."""
        return self._channel.stream_stream(path)

    def snapshot(self, timeout: float | None = None) -> Any:
        """Call Maintenance.Snapshot. Return grpcio's call, an iterator of the replies' bytes."""
        call = self._channel.unary_stream("/etcdserverpb.Maintenance/Snapshot")
        return call(b"", timeout=timeout or self.timeout)

    def observe(self, request: bytes, metadata: tuple[tuple[str, str], ...] = ()) -> Any:
        """Call Election.Observe. Return grpcio's call, an iterator of the replies' bytes."""
        return self._channel.unary_stream("/v3electionpb.Election/Observe")(request, metadata=metadata)

    def backup(self) -> bytes:
        """Return a whole backup. Raises Failure."""
        try:
            return b"".join(m.TYPES["SnapshotResponse"].FromString(data).blob for data in self.snapshot(60))
        except grpc.RpcError as error:
            raise Failure(error.code().value[0], error.details() or "") from None

    def future(self, request: Any, timeout: float | None = None) -> Any:
        """Start a call. Return grpcio's future of the reply's bytes."""
        return self.stub(ROUTES[type(request).__name__][0]).future(
            request.SerializeToString(), timeout=timeout or self.timeout
        )

    def call(self, request: Any, timeout: float | None = None) -> Any:
        """Send a message to the method that its type belongs to. Return the reply message. Raises Failure."""
        path, kind = ROUTES[type(request).__name__]
        return kind.FromString(self.raw(path, request.SerializeToString(), timeout))

    def put(self, key: bytes, value: bytes = b"", **flags: Any) -> Any:
        return self.call(m.PutRequest(key=key, value=value, **flags))

    def range(self, key: bytes, range_end: bytes = b"", **flags: Any) -> Any:
        return self.call(m.RangeRequest(key=key, range_end=range_end, **flags))

    def get(self, key: bytes) -> bytes | None:
        """Return the value of one key, or None."""
        kvs = self.range(key).kvs
        return kvs[0].value if kvs else None

    def prefix(self, prefix: bytes) -> dict[bytes, bytes]:
        """Return all keys under `prefix` with their values."""
        return {kv.key: kv.value for kv in self.range(prefix or b"\0", prefix_end(prefix)).kvs}

    def range_stream(self, key: bytes, range_end: bytes = b"", timeout: float | None = None, **flags: Any) -> Any:
        """Begin a RangeStream. Return grpcio's call, an iterator of RangeResponses."""
        reply = m.TYPES["RangeStreamResponse"]
        call = self._channel.unary_stream(
            "/etcdserverpb.KV/RangeStream",
            request_serializer=m.RangeRequest.SerializeToString,
            response_deserializer=lambda data: reply.FromString(data).range_response,
        )
        request = m.RangeRequest(key=key, range_end=range_end, **flags)
        return call(request, timeout=timeout or self.timeout, metadata=self.metadata)

    def delete(self, key: bytes, range_end: bytes = b"", **flags: Any) -> Any:
        return self.call(m.DeleteRangeRequest(key=key, range_end=range_end, **flags))

    def txn(self, compare: Any = (), success: Any = (), failure: Any = ()) -> Any:
        return self.call(m.TxnRequest(compare=compare, success=success, failure=failure))

    def compact(self, revision: int, physical: bool = False) -> Any:
        return self.call(m.CompactionRequest(revision=revision, physical=physical))

    def status(self) -> Any:
        return self.call(m.StatusRequest())

    def alarm(self, action: int = 0, member: int = 0, kind: int = 0) -> list[tuple[int, int]]:
        """Return the (member, alarm) pairs in the answer to an AlarmRequest; 0 get, 1 activate, 2 deactivate."""
        alarms = self.call(m.AlarmRequest(action=action, memberID=member, alarm=kind)).alarms
        return [(alarm.memberID, alarm.alarm) for alarm in alarms]

    def hash_kv(self, revision: int = 0) -> Any:
        return self.call(m.TYPES["HashKVRequest"](revision=revision))

    def defragment(self) -> Any:
        return self.call(m.TYPES["DefragmentRequest"]())

    def revision(self) -> int:
        """Return the store's current revision, by a linearizable read."""
        return self.range(b"\0", count_only=True).header.revision


def prefix_end(prefix: bytes) -> bytes:
    """Return the range end that covers, together with `prefix`, exactly the keys that begin with it."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else b"\0"


def op(request: Any) -> Any:
    """Wrap a KV request as an operation of a transaction."""
    field = {
        "RangeRequest": "request_range",
        "PutRequest": "request_put",
        "DeleteRangeRequest": "request_delete_range",
        "TxnRequest": "request_txn",
    }[type(request).__name__]
    return m.RequestOp(**{field: request})
