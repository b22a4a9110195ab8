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
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

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
    (errors.UnauthenticatedError, 5),
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
FITTING = "its tensors fit"
# Servers name fields, not commands; which command helps is known here.
_HINTS: tuple[tuple[type[errors.HotslotError], Callable[[Any], str]], ...] = (
    (errors.AdapterNotFoundError, lambda error: "`hotslot ls` lists the adapters that exist"),
    (errors.TagNotFoundError, lambda error: f"`hotslot show {_name_of(error)}` lists its tags"),
    (errors.VersionNotFoundError, lambda error: f"`hotslot show {_name_of(error)}` lists its versions"),
    (errors.PolicyNotFoundError, lambda error: f"`hotslot policy set {error.resource}` gives it one"),
    (errors.BaseModelNameTakenError, lambda error: "--name gives it one, `hotslot base add --move` moves it"),
    (
        errors.BaseModelMismatchError,
        lambda error: "--base names another base model" if FITTING in error.message else "",
    ),
    (errors.NoWorkersError, lambda error: "`hotslot workers` lists what is served"),
    (
        errors.BaseModelNotFoundError,
        lambda error: (
            f"--base names it, `hotslot base alias {error.fitting} {error.resource}` makes the alias"
            if error.fitting
            else "`hotslot base add` registers it, --base names another"
        ),
    ),
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
            text = hint(error)
            return [f"hotslot: {_one_line(error.violations[0].message)}" + (f"; {text}" if text else "")]
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
    for text in (advice, hint(error)):
        line += f"; {text}" if text else ""
    return [line + (f"; try again in {retry_after_s:g} s" if retry_after_s else "")]


def hint(error: errors.HotslotError) -> str:
    """The command that helps; nothing where the server, of an earlier release, names one itself."""
    make = next((make for cls, make in _HINTS if isinstance(error, cls)), None)
    return make(error) if make is not None and "`hotslot " not in error.message else ""


def _name_of(error: errors.NotFoundError) -> str:
    """Name of the adapter that a resource is a part of."""
    return error.resource.partition("@")[0].partition(":")[0]


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
