"""The etcd v3 messages that the tests speak, built from a table in a private descriptor pool.

They are an independent witness. Names and numbers are facts of the interface, written down here a second time, so a
slip in the project's .proto files shows up as a difference and does not hide on both sides.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELD = descriptor_pb2.FieldDescriptorProto

_SCALARS = {
    "bytes": _FIELD.TYPE_BYTES,
    "string": _FIELD.TYPE_STRING,
    "bool": _FIELD.TYPE_BOOL,
    "int32": _FIELD.TYPE_INT32,
    "int64": _FIELD.TYPE_INT64,
    "uint32": _FIELD.TYPE_UINT32,
    "uint64": _FIELD.TYPE_UINT64,
}

# One line a message: field:type=number; '*' repeats; '|name' puts the field in that oneof; '%' is an enum on the wire.
_TABLE = """
KeyValue key:bytes=1 create_revision:int64=2 mod_revision:int64=3 version:int64=4 value:bytes=5 lease:int64=6
ResponseHeader cluster_id:uint64=1 member_id:uint64=2 revision:int64=3 raft_term:uint64=4
RangeRequest key:bytes=1 range_end:bytes=2 limit:int64=3 revision:int64=4 sort_order:int32=5 sort_target:int32=6 \
 serializable:bool=7 keys_only:bool=8 count_only:bool=9 min_mod_revision:int64=10 max_mod_revision:int64=11 \
 min_create_revision:int64=12 max_create_revision:int64=13
RangeResponse header:ResponseHeader=1 kvs:*KeyValue=2 more:bool=3 count:int64=4
RangeStreamResponse range_response:RangeResponse=1
PutRequest key:bytes=1 value:bytes=2 lease:int64=3 prev_kv:bool=4 ignore_value:bool=5 ignore_lease:bool=6
PutResponse header:ResponseHeader=1 prev_kv:KeyValue=2
DeleteRangeRequest key:bytes=1 range_end:bytes=2 prev_kv:bool=3
DeleteRangeResponse header:ResponseHeader=1 deleted:int64=2 prev_kvs:*KeyValue=3
RequestOp request_range:RangeRequest=1|request request_put:PutRequest=2|request \
 request_delete_range:DeleteRangeRequest=3|request request_txn:TxnRequest=4|request
ResponseOp response_range:RangeResponse=1|response response_put:PutResponse=2|response \
 response_delete_range:DeleteRangeResponse=3|response response_txn:TxnResponse=4|response
Compare result:int32=1 target:int32=2 key:bytes=3 version:int64=4|target_union create_revision:int64=5|target_union \
 mod_revision:int64=6|target_union value:bytes=7|target_union lease:int64=8|target_union range_end:bytes=64
TxnRequest compare:*Compare=1 success:*RequestOp=2 failure:*RequestOp=3
TxnResponse header:ResponseHeader=1 succeeded:bool=2 responses:*ResponseOp=3
CompactionRequest revision:int64=1 physical:bool=2
CompactionResponse header:ResponseHeader=1
StatusRequest
StatusResponse header:ResponseHeader=1 version:string=2 dbSize:int64=3 leader:uint64=4 raftIndex:uint64=5 \
 raftTerm:uint64=6 raftAppliedIndex:uint64=7 errors:*string=8 dbSizeInUse:int64=9 isLearner:bool=10
AlarmRequest action:int32=1 memberID:uint64=2 alarm:int32=3
AlarmMember memberID:uint64=1 alarm:int32=2
AlarmResponse header:ResponseHeader=1 alarms:*AlarmMember=2
SnapshotRequest
SnapshotResponse header:ResponseHeader=1 remaining_bytes:uint64=2 blob:bytes=3 version:string=4
DefragmentRequest
DefragmentResponse header:ResponseHeader=1
HashRequest
HashResponse header:ResponseHeader=1 hash:uint32=2
HashKVRequest revision:int64=1
HashKVResponse header:ResponseHeader=1 hash:uint32=2 compact_revision:int64=3 hash_revision:int64=4
MemberListRequest linearizable:bool=1
MemberAddRequest peerURLs:*string=1 isLearner:bool=2
MemberAddResponse header:ResponseHeader=1 member:Member=2 members:*Member=3
MemberRemoveRequest ID:uint64=1
MemberRemoveResponse header:ResponseHeader=1 members:*Member=2
MemberUpdateRequest ID:uint64=1 peerURLs:*string=2
MemberUpdateResponse header:ResponseHeader=1 members:*Member=2
MemberPromoteRequest ID:uint64=1
MemberPromoteResponse header:ResponseHeader=1 members:*Member=2
MoveLeaderRequest targetID:uint64=1
MoveLeaderResponse header:ResponseHeader=1
Member ID:uint64=1 name:string=2 peerURLs:*string=3 clientURLs:*string=4 isLearner:bool=5
MemberListResponse header:ResponseHeader=1 members:*Member=2
Event type:int32=1 kv:KeyValue=2 prev_kv:KeyValue=3
WatchCreateRequest key:bytes=1 range_end:bytes=2 start_revision:int64=3 progress_notify:bool=4 filters:*int32=5 \
 prev_kv:bool=6 watch_id:int64=7 fragment:bool=8
WatchCancelRequest watch_id:int64=1
WatchProgressRequest
WatchRequest create_request:WatchCreateRequest=1|request_union cancel_request:WatchCancelRequest=2|request_union \
 progress_request:WatchProgressRequest=3|request_union
WatchResponse header:ResponseHeader=1 watch_id:int64=2 created:bool=3 canceled:bool=4 compact_revision:int64=5 \
 cancel_reason:string=6 fragment:bool=7 events:*Event=11
LeaseGrantRequest TTL:int64=1 ID:int64=2
LeaseGrantResponse header:ResponseHeader=1 ID:int64=2 TTL:int64=3 error:string=4
LeaseRevokeRequest ID:int64=1
LeaseRevokeResponse header:ResponseHeader=1
LeaseKeepAliveRequest ID:int64=1
LeaseKeepAliveResponse header:ResponseHeader=1 ID:int64=2 TTL:int64=3
LeaseTimeToLiveRequest ID:int64=1 keys:bool=2
LeaseTimeToLiveResponse header:ResponseHeader=1 ID:int64=2 TTL:int64=3 grantedTTL:int64=4 keys:*bytes=5
LeaseLeasesRequest
LeaseStatus ID:int64=1
LeaseLeasesResponse header:ResponseHeader=1 leases:*LeaseStatus=2
LockRequest name:bytes=1 lease:int64=2
LockResponse header:ResponseHeader=1 key:bytes=2
UnlockRequest key:bytes=1
UnlockResponse header:ResponseHeader=1
LeaderKey name:bytes=1 key:bytes=2 rev:int64=3 lease:int64=4
CampaignRequest name:bytes=1 lease:int64=2 value:bytes=3
CampaignResponse header:ResponseHeader=1 leader:LeaderKey=2
LeaderRequest name:bytes=1
LeaderResponse header:ResponseHeader=1 kv:KeyValue=2
ResignRequest leader:LeaderKey=1
ResignResponse header:ResponseHeader=1
ProclaimRequest leader:LeaderKey=1 value:bytes=2
ProclaimResponse header:ResponseHeader=1
HealthCheckRequest service:string=1
HealthCheckResponse status:int32=1
"""

# Values of the enums, which the table above carries as int32 (the same on the wire).
NONE, ASCEND, DESCEND = 0, 1, 2
KEY, VERSION, CREATE, MOD, VALUE = 0, 1, 2, 3, 4
EQUAL, GREATER, LESS, NOT_EQUAL = 0, 1, 2, 3
CMP_VERSION, CMP_CREATE, CMP_MOD, CMP_VALUE, CMP_LEASE = 0, 1, 2, 3, 4


def _add_field(message: descriptor_pb2.DescriptorProto, text: str, oneofs: list[str]) -> None:
    name, _, rest = text.partition(":")
    kind, _, number = rest.partition("=")
    number, _, oneof = number.partition("|")
    field = message.field.add(name=name, number=int(number), label=_FIELD.LABEL_OPTIONAL)
    if kind.startswith("*"):
        kind = kind[1:]
        field.label = _FIELD.LABEL_REPEATED
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = _FIELD.TYPE_MESSAGE
        field.type_name = f".witness.{kind}"
    if oneof:
        if oneof not in oneofs:
            oneofs.append(oneof)
            message.oneof_decl.add(name=oneof)
        field.oneof_index = oneofs.index(oneof)


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="witness.proto", package="witness", syntax="proto3")
    names = []
    for line in _TABLE.replace("\\\n", "").strip().splitlines():
        name, *fields = line.split()
        names.append(name)
        message = file.message_type.add(name=name)
        oneofs: list[str] = []
        for field in fields:
            _add_field(message, field, oneofs)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {n: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"witness.{n}")) for n in names}


TYPES = _build()

KeyValue = TYPES["KeyValue"]
RangeRequest = TYPES["RangeRequest"]
RangeResponse = TYPES["RangeResponse"]
PutRequest = TYPES["PutRequest"]
PutResponse = TYPES["PutResponse"]
DeleteRangeRequest = TYPES["DeleteRangeRequest"]
DeleteRangeResponse = TYPES["DeleteRangeResponse"]
RequestOp = TYPES["RequestOp"]
Compare = TYPES["Compare"]
TxnRequest = TYPES["TxnRequest"]
TxnResponse = TYPES["TxnResponse"]
CompactionRequest = TYPES["CompactionRequest"]
CompactionResponse = TYPES["CompactionResponse"]
StatusRequest = TYPES["StatusRequest"]
StatusResponse = TYPES["StatusResponse"]
AlarmRequest = TYPES["AlarmRequest"]
AlarmResponse = TYPES["AlarmResponse"]
MemberListRequest = TYPES["MemberListRequest"]
MemberListResponse = TYPES["MemberListResponse"]
MemberAddRequest = TYPES["MemberAddRequest"]
MemberAddResponse = TYPES["MemberAddResponse"]
MemberRemoveRequest = TYPES["MemberRemoveRequest"]
MemberRemoveResponse = TYPES["MemberRemoveResponse"]
MemberUpdateRequest = TYPES["MemberUpdateRequest"]
MemberUpdateResponse = TYPES["MemberUpdateResponse"]
MemberPromoteRequest = TYPES["MemberPromoteRequest"]
MemberPromoteResponse = TYPES["MemberPromoteResponse"]
MoveLeaderRequest = TYPES["MoveLeaderRequest"]
MoveLeaderResponse = TYPES["MoveLeaderResponse"]
HealthCheckRequest = TYPES["HealthCheckRequest"]
HealthCheckResponse = TYPES["HealthCheckResponse"]
