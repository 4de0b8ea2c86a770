META: bytes
REVISION_KEY: bytes
COMPACT_KEY: bytes
SWEPT_KEY: bytes

def encode_index_key(key: bytes, main: int, sub: int = 0) -> bytes: ...
def decode_index_key(data: bytes) -> tuple[bytes, int, int]: ...
