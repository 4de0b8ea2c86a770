"""Keys that are too long for a storage engine."""

def check_request(kind: int, body: bytes, most: int) -> None: ...  # raises RequestTooLarge
