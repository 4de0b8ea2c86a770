def held_now() -> int: ...  # bytes of memory that all maps of this process hold
