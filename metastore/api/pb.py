"""The message classes of the client interface: `pb.StatusRequest`, `pb.KeyValue`, `pb.HealthCheckRequest`, ...

They live in a descriptor pool of our own. The process-wide default pool cannot hold two definitions of `etcdserverpb`,
and a client library that the same process imports brings its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from metastore import errors

DESCRIPTORS: Final = Path(__file__).resolve().parent.parent / "proto" / "descriptors.binpb"

#: The private pool.
POOL: Final = descriptor_pool.DescriptorPool()
#: Full names of all services, and of their methods with whether they stream: {path: (requests, replies)}.
METHODS: Final[dict[bytes, tuple[bool, bool]]] = {}

_names: dict[str, str] = {}


def _load() -> None:
    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    for file in files.file:
        POOL.Add(file)
        for kind in file.message_type:
            if kind.name in _names:
                raise AssertionError(f"two messages are called {kind.name}")
            _names[kind.name] = f"{file.package}.{kind.name}"
        for service in file.service:
            for method in service.method:
                path = f"/{file.package}.{service.name}/{method.name}".encode()
                METHODS[path] = (method.client_streaming, method.server_streaming)


def __getattr__(name: str) -> Any:
    full = _names.get(name)
    if full is None:
        raise AttributeError(f"no message {name!r}")
    kind = message_factory.GetMessageClass(POOL.FindMessageTypeByName(full))
    globals()[name] = kind
    return kind


def parse(kind: type[Message], body: bytes) -> Any:
    """Decode `body` as a message of class `kind`. Raises MalformedRequest."""
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise errors.MalformedRequest(f"grpc: error unmarshalling request: {kind.__name__}: {error}") from error


_load()
