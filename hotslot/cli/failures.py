"""Errors as one line that says what to do, and as exit codes.

| code | meaning                                                                     |
|------|-----------------------------------------------------------------------------|
| 0    | done                                                                        |
| 1    | something else failed                                                       |
| 2    | wrong arguments: usage, references, values that the server refuses          |
| 3    | something that was named does not exist                                     |
| 4    | the adapter is refused: broken, unsupported, for another base, rank too large |
| 5    | the state or the permissions do not allow it                                |
| 6    | a bound is reached: quota, slots, queue; try again later                    |
| 7    | the other side cannot be reached, is draining, or the deadline passed       |
| 8    | bytes are not what their digest says                                        |
| 130  | interrupted                                                                 |

With `--json` the error is one JSON line on stderr: `{"error": {"reason", "message", "violations"}}`.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict

from hotslot import errors
from hotslot.clients.rpc import UNREACHABLE
from hotslot.errors.violations import grouped
from hotslot.rpc.status import row_for

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_REFUSED = 4
EXIT_INTERRUPTED = 130
# The first class that fits decides.
_EXIT_CODES: tuple[tuple[type[errors.HotslotError], int], ...] = (
    (errors.InvalidRequestError, EXIT_USAGE),
    (errors.NotFoundError, 3),
    (errors.InvalidAdapterError, EXIT_REFUSED),
    (errors.ConflictError, 5),
    (errors.PreconditionError, 5),
    (errors.ForbiddenError, 5),
    (errors.ExhaustedError, 6),
    (errors.UnavailableError, 7),
    (errors.RequestDeadlineError, 7),
    (errors.DigestMismatchError, 8),
)
_ADVICE: tuple[tuple[type[errors.HotslotError], str], ...] = (
    (errors.StoreUnavailableError, "`hotslot up` starts one; --store or HOTSLOT_STORE names another"),
    (errors.UnavailableError, "`hotslot up` starts one; --worker or HOTSLOT_WORKER names another"),
    (errors.RequestDeadlineError, "try again, or allow more time"),
)


_AGAIN = re.compile(r"[;,] try again(?: later| shortly| soon)?$")
"""Advice of a message that is given with a time, too."""


def exit_code(error: errors.HotslotError) -> int:
    """The exit code that an error stands for."""
    return next((code for cls, code in _EXIT_CODES if isinstance(error, cls)), EXIT_FAILURE)


def error_lines(error: errors.HotslotError) -> list[str]:
    """Lines of a failed command: the message, and one more for each violation of an adapter that has several."""
    if isinstance(error, errors.InvalidAdapterError) and error.violations:
        if len(error.violations) == 1:
            return [f"hotslot: {_one_line(error.violations[0].message)}"]
        count = len(error.violations)
        return [
            f"hotslot: the adapter is refused for {count} reasons:",
            *(f"  {line}" for line in violation_lines(error.violations)),
        ]
    line, retry_after_s = f"hotslot: {_one_line(error.message)}", getattr(error, "retry_after_s", None)
    line = _AGAIN.sub("", line) if retry_after_s else line
    advice = next((text for cls, text in _ADVICE if isinstance(error, cls)), "")
    # A server that answers UNAVAILABLE says itself what to do.
    if isinstance(error, errors.UnavailableError) and UNREACHABLE not in error.message:
        advice = ""
    line += f"; {advice}" if advice else ""
    return [line + (f"; try again in {retry_after_s:g} s" if retry_after_s else "")]


def violation_lines(violations: Sequence[errors.Violation]) -> list[str]:
    """Violations as people read them; those that differ in their subject alone are one line."""
    return [f"{violation.code}: {_one_line(violation.message)}" for violation in grouped(violations)]


def report(error: errors.HotslotError, *, as_json: bool) -> int:
    """Print an error on stderr; returns the exit code."""
    if as_json:
        violations = error.violations if isinstance(error, errors.InvalidAdapterError) else ()
        document = {
            "reason": row_for(error).reason,
            "message": error.message,
            "violations": [asdict(violation) for violation in violations],
        }
        print(json.dumps({"error": document}, allow_nan=False), file=sys.stderr)
    else:
        print("\n".join(error_lines(error)), file=sys.stderr)
    return exit_code(error)


def _one_line(text: str) -> str:
    return " ".join(text.split())
