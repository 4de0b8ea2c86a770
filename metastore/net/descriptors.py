"""This module bounds the file descriptors of the process, and the share that its clients may use.

When descriptors run out, a client only loses its connection, but a log cannot open its next segment, and then the node
dies. That is why clients are bounded well below the limit of the process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterable
from typing import Final

from metastore.config import Config
from metastore.errors import OutOfResources, reason

#: Descriptors for our own files, without the engine's: log segments and the readers of these, snapshots and backups,
#: the connections of 20 peers, listening sockets, standard streams, libraries.
RESERVE: Final = 160
#: So many must be free when a node starts. One takes 9 with its data in memory and 16 with RocksDB, before any client.
FREE: Final = 32
#: We ask for no more than this, because an infinite hard limit may mean a billion.
MOST: Final = 1 << 20


def raise_limit() -> int:
    """Raises the soft limit on open files (RLIMIT_NOFILE) to the hard one. Returns the limit that now holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        return limit
    return MOST if soft == resource.RLIM_INFINITY else soft


def check_free() -> None:
    """Raises OutOfResources unless this process may open FREE more descriptors."""
    free: list[int] = []
    try:
        while len(free) < FREE:
            free.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise lack_of(error) or error from error
    finally:
        for descriptor in free:
            os.close(descriptor)


def lack_of(error: BaseException) -> OutOfResources | None:
    """What an error means that came because there was no descriptor, or no thread; None for any other error.

    The errors of RocksDB are only text.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OutOfResources):
            return cause
        if getattr(cause, "errno", 0) in (errno.EMFILE, errno.ENFILE) or os.strerror(errno.EMFILE) in str(cause):
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return OutOfResources(
                f"{reason(error)}: this process may have {limit} file descriptors (ulimit -n), and {FREE} must be free "
                "when a node starts"
            )
        cause = cause.__cause__
    return None


def let_go(descriptors: Iterable[int]) -> None:
    """Have these lead nowhere. For the copies in a fork of this process: their objects still own the numbers, so they
    are not closed, but what they were open on is.
    """
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in descriptors:
            os.dup2(nowhere, descriptor, inheritable=False)
        os.close(nowhere)


def reserved(config: Config) -> int:
    """The descriptors that are kept for the node's own files."""
    engine = config.storage.rocksdb.max_open_files if config.storage.engine == "rocksdb" else 0
    return RESERVE + engine


def for_clients(config: Config, limit: int) -> int:
    """The number of client connections that `limit` descriptors allow; a quarter of `limit` if our own
    files need most.
    """
    return max(limit - reserved(config), limit // 4, 1)
