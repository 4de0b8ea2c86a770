"""CRC-32 with the polynomial of zlib. `crc` is the sum of the bytes before."""

from typing_extensions import Buffer

def checksum(data: Buffer, crc: int = 0) -> int: ...
def implementations() -> tuple[str, ...]: ...  # names, the fastest first
def checksum_by(implementation: str, data: Buffer, crc: int = 0) -> int: ...  # raises ValueError
