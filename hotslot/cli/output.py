"""Output of commands: JSON in a stable shape, or text for people.

JSON has the fields of the dataclasses in `hotslot.contract`, with times as ISO 8601 in UTC, durations as seconds and
full digests. Numbers that JSON does not have are the strings "NaN", "Infinity" and "-Infinity", as
protobuf's own JSON has them. A command with one answer prints one document; one that streams prints a line per event.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import Any

import typer
from rich.console import Console, RenderableType

from hotslot.errors import InvalidRequestError


def jsonable(value: Any) -> Any:
    """A value of the client's types as what `json` takes."""
    if is_dataclass(value) and not isinstance(value, type):
        printed = [field.name for field in fields(value) if field.metadata.get("printed", True)]
        return {name: jsonable(getattr(value, name)) for name in printed}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def print_document(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False))


def print_event(kind: str, value: Any) -> None:
    """Print one JSON line; `event` says what it is."""
    print(json.dumps({"event": kind, **jsonable(value)}, ensure_ascii=False, allow_nan=False), flush=True)


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """Show on a terminal's standard error what is being waited for."""
    waiting = Console(stderr=True)
    if not waiting.is_terminal:
        yield
        return
    with waiting.status(text):
        yield


def console() -> Console:
    """Standard output; tables are not cut where it is no terminal."""
    out = Console(highlight=False)
    if not out.is_terminal:
        out = Console(highlight=False, width=400)
    return out


def show(*parts: RenderableType) -> None:
    """Print tables and texts one under the other, without the spaces that pad the last column."""
    out = console()
    with out.capture() as captured:
        out.print(*parts, sep="\n\n", end="")
    print("\n".join(line.rstrip() for line in captured.get().rstrip().split("\n")))


def ask(question: str) -> None:
    """Go on after a yes on the terminal; raises InvalidRequestError where there is none, and typer.Abort."""
    if not sys.stdin.isatty():
        raise InvalidRequestError([], f"{question} There is no terminal to ask on; say --yes")
    typer.confirm(question, abort=True, err=True)


def say(text: str) -> None:
    """A line for people beside the result, on stderr."""
    print(text, file=sys.stderr)
