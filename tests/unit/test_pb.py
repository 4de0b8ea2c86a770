"""The message classes: the committed descriptors match the .proto files, the numbers are etcd's, and another definition
of the same packages can be in the same process."""

from __future__ import annotations

import subprocess
import sys

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FieldDescriptor

from metastore import errors
from metastore.api import pb
from metastore.proto import generate


def test_descriptors_are_what_the_protos_say() -> None:
    kind = descriptor_pb2.FileDescriptorSet
    committed, compiled = kind.FromString(generate.TARGET.read_bytes()), kind.FromString(generate.compile_protos())
    assert {file.name: file for file in committed.file} == {file.name: file for file in compiled.file}


def test_messages_round_trip() -> None:
    status = pb.StatusResponse(header=pb.ResponseHeader(cluster_id=2**64 - 1, revision=7), errors=["a", "b"])
    assert pb.StatusResponse.FromString(status.SerializeToString()) == status
    assert pb.WatchResponse(events=[pb.Event(kv=pb.KeyValue(key=b"k"))]).events[0].kv.key == b"k"
    assert pb.HealthCheckResponse.SERVING == 1
    assert pb.StatusRequest is pb.StatusRequest
    with pytest.raises(AttributeError):
        _ = pb.NoSuchMessage


def test_malformed_message() -> None:
    assert pb.parse(pb.MemberListRequest, b"\x08\x01").linearizable
    with pytest.raises(errors.MalformedRequest, match="MemberListRequest"):
        pb.parse(pb.MemberListRequest, b"\x08")


def test_methods_and_what_streams() -> None:
    assert len(pb.METHODS) == 42 + 2 + 2 + 5
    assert {path for path, kinds in pb.METHODS.items() if any(kinds)} == {
        b"/etcdserverpb.KV/RangeStream",
        b"/etcdserverpb.Watch/Watch",
        b"/etcdserverpb.Lease/LeaseKeepAlive",
        b"/etcdserverpb.Maintenance/Snapshot",
        b"/grpc.health.v1.Health/Watch",
        b"/v3electionpb.Election/Observe",
    }
    assert pb.METHODS[b"/etcdserverpb.Maintenance/Snapshot"] == (False, True)


def test_the_default_pool_is_left_alone() -> None:
    script = (
        "from metastore.api import pb; pb.KeyValue; from google.protobuf import descriptor_pool as p\n"
        "for name in ('etcdserverpb.PutRequest', 'mvccpb.KeyValue', 'grpc.health.v1.HealthCheckRequest'):\n"
        "    try: p.Default().FindMessageTypeByName(name)\n"
        "    except KeyError: continue\n"
        "    raise SystemExit(name)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    "order", ["import aetcd; from metastore.api import pb", "from metastore.api import pb; import aetcd"]
)
def test_aetcd_in_the_same_process(order: str) -> None:
    script = (
        f"{order}\nimport aetcd.rpc\n"
        "ours = pb.PutRequest(key=b'k', value=b'v', lease=5).SerializeToString()\n"
        "theirs = aetcd.rpc.PutRequest.FromString(ours)\n"
        "assert (theirs.key, theirs.value, theirs.lease) == (b'k', b'v', 5)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def shape(field: FieldDescriptor) -> tuple[object, ...]:
    """Return the visible parts of a field on the wire, and its name."""
    of = field.message_type or field.enum_type
    return field.name, field.number, field.type, field.is_repeated, of.full_name if of else None


def test_the_numbers_are_those_clients_use() -> None:
    """Every message and enum of aetcd is the same in ours. Ours may have fields of 3.6 on top."""
    import aetcd.rpc  # noqa: F401

    theirs = descriptor_pool.Default()
    checked = 0
    for name in ("rpc.proto", "kv.proto", "auth.proto"):
        for message in theirs.FindFileByName(name).message_types_by_name.values():
            own = pb.POOL.FindMessageTypeByName(message.full_name)
            missing = {shape(field) for field in message.fields} - {shape(field) for field in own.fields}
            assert not missing, (message.full_name, missing)
            for enum in message.enum_types:
                mine = own.enum_types_by_name[enum.name]
                assert [(v.name, v.number) for v in mine.values] == [(v.name, v.number) for v in enum.values]
            checked += 1
    assert checked > 100
