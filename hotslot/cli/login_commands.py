"""Commands on the caller itself: login, logout, whoami."""

import getpass
import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from hotslot.cli import options
from hotslot.cli.options import (
    ContextOption,
    JsonOption,
    StoreOption,
    TenantOption,
    contexts_file,
    environment,
    open_client,
)
from hotslot.cli.output import print_document, say, show
from hotslot.cli.rendering import details_table
from hotslot.clients.blocking import BlockingStoreClient
from hotslot.clients.defaults import DEFAULT_STORE
from hotslot.clients.device_login import DeviceCode, device_token
from hotslot.clients.found_security import TOKEN, found_security, says_security
from hotslot.content_files import PRIVATE, write_file
from hotslot.contexts import SavedContext, change_contexts, chosen_context
from hotslot.contract.sharing import KnownCaller
from hotslot.errors import FieldViolation, InvalidRequestError, NotImplementedYetError
from hotslot.ids import TenantId
from hotslot.rpc.channel import ChannelOptions
from hotslot.rpc.security import MAX_TOKEN_BYTES, BearerToken, ChannelSecurity

TOKENS = "tokens"
"""Folder beside the file of contexts, with a token for each."""
SCOPES = "openid"


def login(
    issuer: Annotated[
        str,
        typer.Option("--issuer", metavar="URL", help="Log in on a page of this issuer (OpenID Connect's device code)."),
    ] = "",
    client_id: Annotated[
        str, typer.Option("--client-id", metavar="ID", help="Client that hotslot is to that issuer.")
    ] = "hotslot",
    issuer_scopes: Annotated[
        str, typer.Option("--issuer-scope", metavar="WORDS", help="Scopes to ask that issuer for.")
    ] = SCOPES,
    issuer_ca_file: Annotated[
        str, typer.Option("--issuer-ca-file", metavar="FILE", help="Certificates that the issuer's must lead to.")
    ] = "",
    check: Annotated[bool, typer.Option("--check/--no-check", help="Ask the store whether it takes the token.")] = True,
    context_name: ContextOption = "",
    as_json: JsonOption = False,
) -> None:
    """Keep a token for the context in use: one that is typed, or comes on standard input, or from an issuer's page.

    It is in a file that its owner alone can read, and is never taken from the command line.
    JSON: {context, token_file, caller: {principal, tenants, scopes, tenant, expire_time}, or null}.
    """
    used, saved = _context(context_name)
    if issuer:
        token = device_token(issuer, client_id, issuer_scopes, _show_code, ca_file=issuer_ca_file or None)
    else:
        token = _typed_token()
    security = replace(found_security({}, saved), token=token, token_file=None)
    BearerToken(security)
    known = _known(saved, security) if check else None
    path = _token_file(used)
    write_file(path, io.BytesIO(token.encode() + b"\n"), mode=PRIVATE)
    change_contexts(contexts_file(), lambda now: now.having(used, replace(now.get(used), token_file=str(path))))
    if says_security(environment()):
        say(f"{TOKEN} or another variable names credentials, and goes before the context")
    if as_json:
        print_document({"context": used, "token_file": str(path), "caller": known})
    else:
        who = f" as {known.principal}" if known is not None and known.principal else ""
        print(f"logged in to {used}{who}")


def logout(context_name: ContextOption = "", as_json: JsonOption = False) -> None:
    """Remove the token of the context in use; a file that `hotslot login` did not write stays.

    The token itself stays valid until it expires or is revoked. JSON: {context, removed: the file, or null}.
    """
    used, _ = _context(context_name)
    path = _token_file(used)
    is_there = path.exists()
    path.unlink(missing_ok=True)
    change_contexts(contexts_file(), lambda now: now.having(used, replace(now.get(used), token_file="")))
    if as_json:
        print_document({"context": used, "removed": str(path) if is_there else None})
    else:
        print(f"logged out of {used}")


def whoami(
    store: StoreOption = options.STORE, tenant: TenantOption = options.TENANT, as_json: JsonOption = False
) -> None:
    """Show who the store takes this caller for: its principal, tenants and scopes, and when its token ends.

    JSON: {principal (empty where the store believes each caller), tenants, scopes, tenant, expire_time}.
    """
    with open_client(store=store, tenant=tenant) as client:
        known = client.store.caller()
    if as_json:
        print_document(known)
        return
    rows = [
        ("principal", known.principal or "- (the store believes each caller)"),
        ("tenants", ", ".join(known.tenants) or "-"),
        ("scopes", ", ".join(known.scopes) or "-"),
        ("calls for", known.tenant),
        ("token ends", known.expire_time.strftime("%Y-%m-%d %H:%M %Z") if known.expire_time is not None else "-"),
    ]
    show(details_table(rows))


def _context(name: str) -> tuple[str, SavedContext]:
    used, saved = chosen_context(environment(), name)
    if not used:
        problem = "no context is in use: `hotslot context set NAME --store HOST:PORT` and `hotslot context use NAME`"
        raise InvalidRequestError([FieldViolation("--context", problem)])
    return used, saved


def _token_file(context: str) -> Path:
    return contexts_file().parent / TOKENS / f"{quote(context, safe='')}.token"


def _typed_token() -> str:
    """The token from the terminal, without showing it, or the first line of standard input."""
    if sys.stdin.isatty():
        return getpass.getpass("token: ").strip()
    return sys.stdin.readline(MAX_TOKEN_BYTES + 2).strip()


def _show_code(code: DeviceCode) -> None:
    say(f"open {code.complete_page or code.page} and enter {code.user_code}")


def _known(saved: SavedContext, security: ChannelSecurity) -> KnownCaller | None:
    """The caller that the context's store takes the token for; None where an earlier release cannot say."""
    named = TenantId(saved.tenant) if saved.tenant else None
    with BlockingStoreClient(saved.store or DEFAULT_STORE, ChannelOptions(tenant=named, security=security)) as client:
        try:
            return client.caller()
        except NotImplementedYetError:
            return None
