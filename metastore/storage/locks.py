"""File locks that keep a second process away; the kernel releases them when the process ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl

# The errors of file systems that have no locks of this kind. NFS wants a descriptor that is open for writing, which no
# directory has.
_NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def unlock(fd: int) -> None:
    """Unlock what `fd` is open on. To close `fd` is not enough where a fork of this process has a copy of it."""
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)


def lock(fd: int) -> bool:
    """Lock the file of `fd` until `fd` is closed. Return False if another descriptor has it locked, in this process or
    another one.

    Return True also if the file system has no such locks. Raises OSError.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True
