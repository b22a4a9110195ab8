"""Commands on the file of principals: token create, ls, revoke. Servers that read the file follow within seconds."""

import io
import re
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from hotslot.cli.command_line import Command, Commands
from hotslot.cli.options import JsonOption
from hotslot.cli.output import print_document, say, show
from hotslot.cli.rendering import details_table
from hotslot.content_files import PRIVATE, write_file
from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.formats.principals import (
    EVERY_TENANT,
    Principal,
    Principals,
    Scope,
    new_token,
    read_principals,
    revoked,
)
from hotslot.formats.principals_file import change_principals
from hotslot.ids import parse_tenant

app = typer.Typer(
    cls=Commands, help="Tokens of those who may call, in the file that servers read.", no_args_is_help=True
)

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}

FileOption = Annotated[
    Path,
    typer.Option(
        "--file", envvar="HOTSLOT_PRINCIPALS_FILE", metavar="FILE", help="File of principals, as the servers read it."
    ),
]


@app.command(cls=Command)
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Principal that the token is for; made if it is new.")],
    file: FileOption,
    scopes: Annotated[
        list[str], typer.Option("--scope", metavar="SCOPE", help="Scope of the principal; several times, or by commas.")
    ] = [],  # noqa: B006 (typer reads it)
    tenants: Annotated[
        list[str], typer.Option("--tenant", metavar="NAME", help="Tenant of its own; several times, * for all.")
    ] = [],  # noqa: B006
    expires: Annotated[str, typer.Option("--expires", metavar="TIME", help="End of the token, as 90d or 12h.")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the token there, for its owner alone.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token, and its principal where that is new; the token is shown once and kept nowhere.

    JSON: {id, principal, token}; without the token when --out has it.
    """
    now_s = int(time.time())
    token, record = new_token(now_s, now_s + _seconds(expires) if expires else 0)

    def add(principals: Principals) -> Principals:
        found = principals.get(name, Principal(name, frozenset(), frozenset()))
        own = frozenset(each if each == EVERY_TENANT else parse_tenant(each) for each in _parts(tenants))
        changed = replace(
            found,
            tenants=own or found.tenants or frozenset({"default"}),
            scopes=_scopes(scopes) or found.scopes or frozenset({Scope.READ, Scope.USE}),
            tokens=(*found.tokens, record),
        )
        return {**principals, name: changed}

    change_principals(file, add)
    if out is not None:
        write_file(out, io.BytesIO(token.encode() + b"\n"), mode=PRIVATE)
    shown = {"id": record.id, "principal": name, **({"token": token} if out is None else {})}
    if as_json:
        print_document(shown)
    elif out is None:
        print(token)
    else:
        say(f"token {record.id} of {name} is in {out}")


@app.command(cls=Command)
def ls(file: FileOption, as_json: JsonOption = False) -> None:
    """List the tokens, without what they are.

    JSON: a list of {id, principal, tenants, scopes, created_s, expires_s, revoked_s}.
    """
    listed = [
        {
            "id": record.id,
            "principal": principal.name,
            "tenants": sorted(principal.tenants),
            "scopes": [scope.value for scope in Scope if scope in principal.scopes],
            "created_s": record.created_s,
            "expires_s": record.expires_s,
            "revoked_s": record.revoked_s,
        }
        for principal in read_principals(file).values()
        for record in principal.tokens
    ]
    if as_json:
        print_document(listed)
        return
    show(details_table([(str(one["id"]), _line(one)) for one in listed]))


@app.command(cls=Command)
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the token, as ls lists it.")],
    file: FileOption,
    as_json: JsonOption = False,
) -> None:
    """Refuse a token from now on, in every server that reads the file.

    JSON: {id}.
    """
    change_principals(file, lambda principals: revoked(principals, token_id, int(time.time())))
    if as_json:
        print_document({"id": token_id})
    else:
        say(f"token {token_id} is revoked")


def _line(one: dict[str, object]) -> str:
    def day(name: str) -> str:
        return datetime.fromtimestamp(int(str(one[name])), UTC).strftime("%Y-%m-%d %H:%M")

    state = (
        f"revoked {day('revoked_s')}" if one["revoked_s"] else f"until {day('expires_s')}" if one["expires_s"] else ""
    )
    words = [str(one["principal"]), *(",".join(map(str, one[name])) for name in ("tenants", "scopes")), state]  # type: ignore[call-overload]
    return "  ".join(filter(None, words))


def _parts(texts: list[str]) -> list[str]:
    return [part for text in texts for part in text.split(",") if part]


def _scopes(texts: list[str]) -> frozenset[Scope]:
    known = {scope.value: scope for scope in Scope}
    wrong = [part for part in _parts(texts) if part not in known]
    if wrong:
        problem = f"found {wrong[0][:40]!r}, expected one of {', '.join(known)}"
        raise InvalidRequestError([FieldViolation("--scope", problem)])
    return frozenset(known[part] for part in _parts(texts))


def _seconds(text: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text)
    if found is None:
        raise InvalidRequestError([FieldViolation("--expires", f"found {text[:40]!r}, expected as 90d, 12h or 30m")])
    return int(found[1]) * _UNITS_S[found[2]]
