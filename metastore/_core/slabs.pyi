def slabs_now() -> tuple[int, int, int]: ...  # bytes of addresses, of what may be resident, of pieces in use
