"""End of a process that cannot start, or cannot go on: its reason in one line, an exit code of its kind, and a pause.

The line is the last that the process writes, where `docker compose logs`, a pod's termination message and `hotslot up`
show it. The pause is for what starts processes again at once, as Podman does: the same failure comes again.
"""

import signal
import sys
import time
from contextlib import suppress
from types import FrameType

from hotslot.errors import ForbiddenError, InvalidRequestError, NotFoundError, PreconditionError

EXIT_FAILED = 1
"""Something failed that may not fail the next time."""
EXIT_REFUSED = 2
"""A setting, the model or the data is refused: starting again changes nothing until an operator changes that."""
_REFUSALS = (InvalidRequestError, PreconditionError, NotFoundError, ForbiddenError)


def tell_failed_start(prog: str, error: Exception, pause_s: float) -> int:
    """Write why `prog` does not start, pause, and return the exit code."""
    _tell(prog, "cannot start", error)
    pause_before_end(pause_s)
    return EXIT_REFUSED if isinstance(error, _REFUSALS) else EXIT_FAILED


def tell_failure(prog: str, error: Exception) -> int:
    """Write why `prog`, which had started, ends; returns the exit code. Starting again may help."""
    _tell(prog, "cannot go on", error)
    return EXIT_FAILED


def _tell(prog: str, what: str, error: Exception) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"{prog}: {what}: {' '.join(str(error).split()) or repr(error)}\n")
    sys.stderr.flush()


class _Told(Exception):
    """A signal asked the process to end."""


def pause_before_end(pause_s: float) -> None:
    """Wait; SIGTERM and SIGINT end the wait. Called on the main thread, as the last thing of a process."""
    if pause_s <= 0:
        return
    with suppress(_Told):
        # The first process of a container is not ended by a signal that it does not handle.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _end_pause)
        time.sleep(pause_s)


def _end_pause(number: int, frame: FrameType | None) -> None:
    raise _Told
