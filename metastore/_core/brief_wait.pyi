from metastore._core.quiet import Quiet

def await_readable(fd: int, seconds: float, quiet: Quiet) -> None: ...
def readable(fd: int) -> bool: ...  # whether there is anything to read; of an epoll, whether it has anything to tell
