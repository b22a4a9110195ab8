"""Output of commands: JSON in a stable shape, or text for people.

JSON has the fields of the dataclasses in `hotslot.contract`, with times as ISO 8601 in UTC, durations as seconds and
full digests. Numbers that JSON does not have are the strings "NaN", "Infinity" and "-Infinity", as
protobuf's own JSON has them, and bytes are base64. A command with one answer prints one document; one that streams
prints a line per event.
"""

import base64
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from hotslot.cli.failures import report
from hotslot.contract.generation import TokenAlternative
from hotslot.errors import HotslotError, InvalidRequestError

UNBOUNDED_COLUMNS = 400
"""Width where nothing has to fit."""


class ListForm(StrEnum):
    """Form in which a list is printed."""

    TABLE = "table"
    JSON = "json"
    NAME = "name"
    WIDE = "wide"


FormOption = Annotated[
    ListForm, typer.Option("--output", "-o", help="Form of the list: wide leaves out no column and has full digests.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print names only, as -o name.")]
WatchOption = Annotated[bool, typer.Option("--watch", "-w", help="List again every two seconds, until Ctrl-C.")]


def jsonable(value: Any) -> Any:
    """A value of the client's types as what `json` takes."""
    if is_dataclass(value) and not isinstance(value, type):
        printed = [field.name for field in fields(value) if field.metadata.get("printed", True)]
        return {name: jsonable(getattr(value, name)) for name in printed}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, TokenAlternative) and not value.text_bytes:
        value = value[:2]
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


def console(*, wide: bool = False) -> Console:
    """Standard output; tables are not cut where it is no terminal."""
    out = Console(highlight=False)
    if wide or not out.is_terminal:
        out = Console(highlight=False, width=UNBOUNDED_COLUMNS)
    return out


def rendered(*parts: RenderableType, out: Console | None = None) -> str:
    """Tables and texts one under the other, without the spaces that pad the last column."""
    out = out or console()
    with out.capture() as captured:
        out.print(*parts, sep="\n\n", end="")
    return "\n".join(line.rstrip() for line in captured.get().rstrip().split("\n"))


def show(*parts: RenderableType, out: Console | None = None) -> None:
    """Print tables and texts, as `rendered` has them."""
    print(rendered(*parts, out=out))


def print_list(
    form: ListForm, document: Any, names: Sequence[str], table: Callable[[bool], RenderableType], *, nothing: str
) -> None:
    """Print a list in one of its forms; `table` makes it, wide or not, and `nothing` is said of an empty one."""
    if form == ListForm.JSON:
        print_document(document)
    elif form == ListForm.NAME:
        print("".join(f"{name}\n" for name in names), end="")
    elif names:
        wide = form == ListForm.WIDE
        show(table(wide), out=console(wide=wide))
    else:
        say(nothing)


def each(names: Sequence[str], act: Callable[[str], tuple[Any, str]], *, as_json: bool) -> None:
    """Act on names in turn, which gives a document and a text of each; what fails is reported, and the others go on.

    JSON is one document for one name, and a list of them for several.
    """
    documents, code = [], 0
    for name in names:
        try:
            document, text = act(name)
        except HotslotError as exc:
            if len(names) == 1:
                raise
            code = code or report(exc, as_json=as_json)
            continue
        documents.append(document)
        if not as_json:
            print(text)
    if as_json:
        print_document(documents if len(names) > 1 else documents[0])
    if code:
        raise typer.Exit(code)


def ask(question: str) -> None:
    """Go on after a yes on the terminal; raises InvalidRequestError where there is none, and typer.Abort."""
    if not sys.stdin.isatty():
        raise InvalidRequestError([], f"{question} There is no terminal to ask on; say --yes")
    typer.confirm(question, abort=True, err=True)


def say(text: str) -> None:
    """A line for people beside the result, on stderr."""
    print(text, file=sys.stderr)
