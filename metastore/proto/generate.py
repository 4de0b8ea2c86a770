"""Compile the .proto files of this folder into descriptors.binpb (development only, needs grpcio-tools).

`python -m metastore.proto.generate` writes the file; `compile_protos()` gives what it would write.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE / "descriptors.binpb"


def compile_protos() -> bytes:
    """The serialized FileDescriptorSet of all .proto files here. Raises RuntimeError when protoc refuses one."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        names = sorted(path.name for path in HERE.glob("*.proto"))
        status = protoc.main(["protoc", f"-I{HERE}", f"--descriptor_set_out={out}", "--include_imports", *names])
        if status != 0:
            raise RuntimeError(f"protoc ended with status {status}")
        return out.read_bytes()


if __name__ == "__main__":
    data = compile_protos()
    TARGET.write_bytes(data)
    sys.stdout.write(f"{TARGET.name}: {len(data)} bytes\n")
