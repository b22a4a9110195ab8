"""End of a process that cannot start, or cannot go on: its reason in one line, an exit code of its kind, and a pause.

The line is the last that the process writes, where `docker compose logs`, a pod's termination message and `hotslot up`
show it. The pause is for what starts processes again at once, as Podman does: the same failure comes again.
"""

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hotslot.errors import ForbiddenError, InvalidRequestError, NotFoundError, PreconditionError

EXIT_FAILED = 1
"""Something failed that may not fail the next time."""
EXIT_REFUSED = 2
"""A setting, the model or the data is refused: starting again changes nothing until an operator changes that."""
_REFUSALS = (InvalidRequestError, PreconditionError, NotFoundError, ForbiddenError)


def tell_failed_start(prog: str, error: Exception, pause_s: float) -> int:
    """Write why `prog` does not start, pause, and return the exit code."""
    with pause_before_end(pause_s):
        _tell(prog, "cannot start", error)
    return EXIT_REFUSED if isinstance(error, _REFUSALS) else EXIT_FAILED


def tell_failure(prog: str, error: Exception) -> int:
    """Write why `prog`, which had started, ends; returns the exit code. Starting again may help."""
    _tell(prog, "cannot go on", error)
    return EXIT_FAILED


def _tell(prog: str, what: str, error: Exception) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"{prog}: {what}: {' '.join(str(error).split()) or repr(error)}\n")
    sys.stderr.flush()


@contextmanager
def pause_before_end(pause_s: float) -> Iterator[None]:
    """Wait after the block, which tells the reason; SIGTERM and SIGINT end the wait, or skip it if they came before.

    Called on the main thread, as the last thing of a process.
    """
    if pause_s <= 0:
        yield
        return
    # The first process of a container is not ended by a signal that it does not handle. What a handler writes is
    # there whenever it came; what one raises is lost in the end of an object, or before anything catches it.
    told, tell = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: os.write(tell, b"x"))
    yield
    select.select([told], [], [], pause_s)
