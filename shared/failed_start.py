"""The end of a process that cannot start: its reason in one line, an exit code that tells its kind, and a pause.

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
"""A setting, the model or the data is refused: starting again changes nothing until somebody changes that."""
_REFUSALS = (InvalidRequestError, PreconditionError, NotFoundError, ForbiddenError)


def tell_failed_start(prog: str, error: Exception, pause_s: float) -> int:
    """Write why `prog` does not start, pause, and return the exit code."""
    sys.stdout.flush()
    sys.stderr.write(f"{prog}: cannot start: {' '.join(str(error).split())}\n")
    sys.stderr.flush()
    pause_before_end(pause_s)
    return EXIT_REFUSED if isinstance(error, _REFUSALS) else EXIT_FAILED


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
