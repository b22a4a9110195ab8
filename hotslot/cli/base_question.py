"""Question of `hotslot push`: which base model an adapter is for, where its config names none that is registered."""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hotslot.cli.output import say
from hotslot.clients.base_choice import base_of_folder
from hotslot.clients.blocking import BlockingHotslotClient
from hotslot.contract.catalog import BaseModelMatch
from hotslot.errors import BaseModelNotFoundError, FieldViolation, InvalidRequestError, NotImplementedYetError

AskPerson = Callable[[str], str]


def choose_base(
    client: BlockingHotslotClient, folder: Path, reference: str, *, yes: bool, may_ask: bool, ask: AskPerson = input
) -> str:
    """The base model to push a folder for, before anything is uploaded; empty where the config's own name does.

    On a terminal people are asked. Elsewhere the only one that fits is taken with `yes`; otherwise it raises
    InvalidRequestError with the command that would do, and BaseModelNotFoundError where none fits.
    """
    pushed = base_of_folder(folder)
    if pushed is None:
        return ""
    try:
        match = client.store.find_base_models(pushed.name, pushed.weights_header, pushed.weights_size_bytes)
    except NotImplementedYetError:
        return ""  # An older store: it answers after the upload.
    if match.registered and (match.registered in match.fitting or not match.fitting):
        return ""
    if not match.fitting:
        if not pushed.name:
            return ""
        raise BaseModelNotFoundError(pushed.name)
    if len(match.fitting) == 1 and yes:
        return match.fitting[0]
    if not may_ask:
        raise _refusal(pushed.name, match, folder, reference)
    return _asked(pushed.name, match, ask)


def can_ask(*, as_json: bool) -> bool:
    """Tell whether a person sits at the terminal, who could answer a question."""
    return not as_json and sys.stdin.isatty() and sys.stderr.isatty()


def _said(name: str, match: BaseModelMatch) -> str:
    if match.registered:
        return f"its config names the base model {name!r}, but its tensors do not fit that one; they fit"
    named = f"the base model {name!r}, which is not registered" if name else "no base model"
    return f"its config names {named}; its tensors fit"


def _refusal(name: str, match: BaseModelMatch, folder: Path, reference: str) -> InvalidRequestError:
    command = f"hotslot push {shlex.quote(str(folder))} {shlex.quote(reference)}"
    first = f"{command} --base {shlex.quote(match.fitting[0])}"
    ways = f"`{first}`" + (", or the same with --yes" if len(match.fitting) == 1 else "")
    problem = f"{_said(name, match)} {', '.join(match.fitting)}: push it with {ways}"
    return InvalidRequestError([FieldViolation("--base", problem)])


def _asked(name: str, match: BaseModelMatch, ask: AskPerson) -> str:
    fitting: Sequence[str] = match.fitting
    say(f"{_said(name, match)}{':' if len(fitting) > 1 else ' ' + fitting[0]}")
    if len(fitting) == 1:
        if ask(f"push it for {fitting[0]}? [y/N] ").strip().lower() in ("y", "yes"):
            return fitting[0]
    else:
        for number, other in enumerate(fitting, 1):
            say(f"  {number}  {other}")
        answer = ask(f"push it for which one? [1-{len(fitting)}, nothing to give up] ").strip()
        if answer.isdecimal() and 0 < int(answer) <= len(fitting):
            return fitting[int(answer) - 1]
    raise InvalidRequestError([FieldViolation("--base", "nothing was pushed; name the base model with --base")])
