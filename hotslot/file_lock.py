"""Locks of open files between processes: the kernel lets go of one with its holder's file, however that ends."""

import fcntl


def lock(descriptor: int) -> None:
    """Take the lock for as long as the file is open, once no other process has it. Raises OSError."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def try_lock(descriptor: int, *, is_shared: bool = False) -> bool:
    """Take the lock for as long as the file is open; False where another process has it. Raises OSError.

    A shared one excludes those that are not, and no other shared one.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
