"""The form of keys and revisions in the engine (layout: FORMATS.md, "Engine records")."""

META: bytes  # the first byte of the engine's keys of meta records
REVISION_KEY: bytes
COMPACT_KEY: bytes
SWEPT_KEY: bytes

def encode_index_key(key: bytes, main: int, sub: int = 0) -> bytes: ...  # the engine key of a version
def decode_index_key(data: bytes) -> tuple[bytes, int, int]: ...  # (key, main, sub); raises FormatError
