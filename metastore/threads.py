"""The threads of a node: how they are named, and the error when the system starts no more of them.

The name of a thread begins with that of its node, so the threads of several nodes in one process can be told apart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from .errors import OutOfResources

#: This stands between the node's name and the task of the thread.
SEPARATOR = "/"


def loop_thread(node: str, run: Callable[[], object]) -> threading.Thread:
    """Make the thread of the node with this name that will start all others. It is not started."""
    return threading.Thread(target=run, name=f"metastore-{node}{SEPARATOR}loop", daemon=True)


def begin(role: str, run: Callable[..., object], *arguments: object) -> threading.Thread:
    """Start a daemon thread of the node whose thread calls this. `role` names its task. Raises OutOfResources."""
    node, found, _ = threading.current_thread().name.partition(SEPARATOR)
    name = f"{node}{SEPARATOR}{role}" if found else role
    thread = threading.Thread(target=run, args=arguments, name=name, daemon=True)
    start(thread)
    return thread


def start(thread: threading.Thread) -> None:
    """Start a thread. Raises OutOfResources."""
    try:
        thread.start()
    except RuntimeError as error:
        raise OutOfResources(
            f"the thread {thread.name} cannot be started ({error}): see ulimit -u, the limits of the container, memory"
        ) from error
