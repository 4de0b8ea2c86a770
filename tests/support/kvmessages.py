"""The KV messages as protobuf classes in a private descriptor pool, as the reference for the tests of codec and store.

Names and numbers are etcd's. They are written here by hand, so the tests do not depend on what the product ships.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_T = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bytes": _T.TYPE_BYTES,
    "int64": _T.TYPE_INT64,
    "uint64": _T.TYPE_UINT64,
    "bool": _T.TYPE_BOOL,
    "enum": _T.TYPE_INT32,
}
_MESSAGES = {
    "ResponseHeader": "cluster_id:uint64=1 member_id:uint64=2 revision:int64=3 raft_term:uint64=4",
    "KeyValue": "key:bytes=1 create_revision:int64=2 mod_revision:int64=3 version:int64=4 value:bytes=5 lease:int64=6",
    "RangeRequest": "key:bytes=1 range_end:bytes=2 limit:int64=3 revision:int64=4 sort_order:enum=5 sort_target:enum=6 "
    "serializable:bool=7 keys_only:bool=8 count_only:bool=9 min_mod_revision:int64=10 max_mod_revision:int64=11 "
    "min_create_revision:int64=12 max_create_revision:int64=13",
    "RangeResponse": "header:ResponseHeader=1 kvs:KeyValue*=2 more:bool=3 count:int64=4",
    "RangeStreamResponse": "range_response:RangeResponse=1",
    "PutRequest": "key:bytes=1 value:bytes=2 lease:int64=3 prev_kv:bool=4 ignore_value:bool=5 ignore_lease:bool=6",
    "PutResponse": "header:ResponseHeader=1 prev_kv:KeyValue=2",
    "DeleteRangeRequest": "key:bytes=1 range_end:bytes=2 prev_kv:bool=3",
    "DeleteRangeResponse": "header:ResponseHeader=1 deleted:int64=2 prev_kvs:KeyValue*=3",
    "RequestOp": "request_range:RangeRequest|1 request_put:PutRequest|2 request_delete_range:DeleteRangeRequest|3 "
    "request_txn:TxnRequest|4",
    "ResponseOp": "response_range:RangeResponse|1 response_put:PutResponse|2 "
    "response_delete_range:DeleteRangeResponse|3 response_txn:TxnResponse|4",
    "Compare": "result:enum=1 target:enum=2 key:bytes=3 version:int64|4 create_revision:int64|5 mod_revision:int64|6 "
    "value:bytes|7 lease:int64|8 range_end:bytes=64",
    "TxnRequest": "compare:Compare*=1 success:RequestOp*=2 failure:RequestOp*=3",
    "TxnResponse": "header:ResponseHeader=1 succeeded:bool=2 responses:ResponseOp*=3",
    "CompactionRequest": "revision:int64=1 physical:bool=2",
    "CompactionResponse": "header:ResponseHeader=1",
}


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="kvtest.proto", package="kvtest", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for text in fields.split():
            oneof = "|" in text
            left, number = text.replace("|", "=").split("=")
            field_name, kind = left.split(":")
            repeated = kind.endswith("*")
            kind = kind.rstrip("*")
            field = message.field.add(
                name=field_name, number=int(number), label=_T.LABEL_REPEATED if repeated else _T.LABEL_OPTIONAL
            )
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type = _T.TYPE_MESSAGE
                field.type_name = f".kvtest.{kind}"
            if oneof:
                if not message.oneof_decl:
                    message.oneof_decl.add(name="union")
                field.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"kvtest.{name}")) for name in _MESSAGES}


_CLASSES = _build()


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return _CLASSES[name]
    raise AttributeError(name)
