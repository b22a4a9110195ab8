"""Full disk as callers see it, wherever it shows."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from hotslot.errors import QuotaExceededError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def no_room_is_a_quota(what: str) -> Iterator[None]:
    """Turn a full disk into QuotaExceededError."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in _NO_ROOM:
            raise
        message = f"no space is left on the store's disk for {what}; delete adapters or enlarge the volume"
        raise QuotaExceededError(message, subject="disk") from exc
