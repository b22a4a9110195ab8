"""Commands on contexts, the names that a user has for deployments: ls, show, use, set, rm."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hotslot.cli import options
from hotslot.cli.command_line import Command, Commands
from hotslot.cli.options import JsonOption, StoreOption, TenantOption, WorkerOption, context_defaults, contexts_file
from hotslot.cli.output import FormOption, ListForm, QuietOption, each, print_document, print_list
from hotslot.cli.output import show as show_parts
from hotslot.cli.rendering import contexts_table, details_table, effective_table
from hotslot.clients.found_security import found_security
from hotslot.contexts import (
    CREDENTIALS,
    FIELDS,
    Contexts,
    SavedContext,
    change_contexts,
    checked_context,
    checked_name,
    read_contexts,
)
from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.rpc.security import BearerToken
from hotslot.rpc.tls_files import TlsFiles

MASK = "***"
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The context.")]

app = typer.Typer(
    cls=Commands, help="Contexts: names for deployments, with endpoints, tenant and credentials.", no_args_is_help=True
)


@app.command("ls", cls=Command)
def ls(form: FormOption = ListForm.TABLE, quiet: QuietOption = False, as_json: JsonOption = False) -> None:
    """List the contexts; the one in use has a star.

    JSON: {current, contexts: [{name, store, worker, tenant, and what it has of ca_file, cert_file, key_file,
    token_file, worker_name}], file}.
    """
    contexts = read_contexts(contexts_file())
    listed = [{"name": name, **_shown(one)} for name, one in sorted(contexts.named.items())]
    print_list(
        form,
        {"current": contexts.current, "contexts": listed, "file": str(contexts_file())},
        sorted(contexts.named),
        lambda wide: contexts_table(contexts),
        nothing="no contexts; `hotslot context set NAME --store HOST:PORT` makes one",
    )


@app.command("show", cls=Command)
def show(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="The context; without one, the settings that a command has here.")
    ] = "",
    store: StoreOption = options.STORE,
    worker: WorkerOption = options.WORKER,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Show a context, or the settings that commands have now, and where each is from.

    An option goes before a variable of the environment, that before the context in use, and that before the default.
    JSON: {name, store, worker, tenant, and its credentials}; without NAME {context, settings: [{name, value, from}],
    file}.
    """
    if name:
        shown = {"name": name, **_shown(read_contexts(contexts_file()).get(name))}
        if as_json:
            print_document(shown)
        else:
            show_parts(details_table((key, value or "-") for key, value in shown.items()))
        return
    used = context_defaults(str(context.params.get("context_name") or ""))[0]
    values = {"store": store, "worker": worker, "tenant": tenant}
    settings = [{"name": key, "value": values[key], "from": _origin(context, key, used)} for key in FIELDS]
    if as_json:
        print_document({"context": used, "settings": settings, "file": str(contexts_file())})
    else:
        show_parts(details_table([("context", used or "-"), ("file", str(contexts_file()))]), effective_table(settings))


@app.command("use", cls=Command)
def use(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="The context; none with --none.")] = "",
    none: Annotated[bool, typer.Option("--none", help="Use no context.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Use a context in every command from now on, where no option, variable or --context says otherwise.

    JSON: {current}.
    """
    if bool(name) == none:
        raise InvalidRequestError([FieldViolation("NAME", "name a context, or say --none; `hotslot context ls`")])
    after = change_contexts(contexts_file(), lambda now: now.using(name) if name else replace(now, current=""))
    if as_json:
        print_document({"current": after.current})
    else:
        print(f"commands use {name}" if name else "commands use no context")


@app.command("set", cls=Command)
def set_(
    name: NameArgument,
    store_endpoint: Annotated[
        str | None, typer.Option("--store", metavar="HOST:PORT", help="Endpoint of the store; empty: the default.")
    ] = None,
    worker_endpoint: Annotated[
        str | None, typer.Option("--worker", metavar="HOST:PORT", help="Endpoint of the worker; empty: the default.")
    ] = None,
    tenant_name: Annotated[
        str | None, typer.Option("--tenant", metavar="NAME", help="Tenant; empty: the default.")
    ] = None,
    ca_file: Annotated[
        str | None,
        typer.Option("--ca-file", metavar="FILE", help="Certificates that those of servers must lead to; TLS then."),
    ] = None,
    cert_file: Annotated[
        str | None, typer.Option("--cert-file", metavar="FILE", help="Own certificate, for servers that ask for one.")
    ] = None,
    key_file: Annotated[
        str | None, typer.Option("--key-file", metavar="FILE", help="Key of the own certificate.")
    ] = None,
    token_file: Annotated[
        str | None, typer.Option("--token-file", metavar="FILE", help="File with the token that says who calls.")
    ] = None,
    worker_name: Annotated[
        str | None, typer.Option("--worker-name", metavar="NAME", help="Name in the certificates of workers.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a context, or change one; parts that are not named stay as they are, and an empty one goes.

    Files are kept by their places and read at each call; tokens are never given on the command line themselves.
    JSON: {name, store, worker, tenant, and its credentials}.
    """
    checked_name(name)
    given = {
        "store": store_endpoint,
        "worker": worker_endpoint,
        "tenant": tenant_name,
        "ca_file": _absolute(ca_file),
        "cert_file": _absolute(cert_file),
        "key_file": _absolute(key_file),
        "token_file": _absolute(token_file),
        "worker_name": worker_name,
    }
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}

    def change(now: Contexts) -> Contexts:
        changed = checked_context(replace(now.named.get(name, SavedContext()), **changes))
        if set(changes) & set(CREDENTIALS):
            _check_files(changed)
        return now.having(name, changed)

    after = change_contexts(contexts_file(), change)
    if as_json:
        print_document({"name": name, **_shown(after.named[name])})
    else:
        used = "is in use" if after.current == name else f"is there; `hotslot context use {name}` uses it"
        print(f"context {name} {used}")


@app.command("rm", cls=Command)
def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="The contexts, one or several.")],
    as_json: JsonOption = False,
) -> None:
    """Remove contexts; the deployments that they name stay.

    JSON: {removed: "context", name}; of several a list.
    """

    def act(name: str) -> tuple[dict[str, str], str]:
        change_contexts(contexts_file(), lambda now: now.without(name))
        return {"removed": "context", "name": name}, f"removed the context {name}"

    each(names, act, as_json=as_json)


def _absolute(text: str | None) -> str | None:
    """Path that means the same in every folder."""
    return str(Path(text).expanduser().absolute()) if text else text


def _check_files(context: SavedContext) -> None:
    """Raise InvalidRequestError for files that calls could not use."""
    security = found_security({}, context)
    TlsFiles(security.tls_paths)
    BearerToken(security)


def _shown(context: SavedContext) -> dict[str, Any]:
    """Fields of a context; those that are not known here may be secret."""
    hidden: Mapping[str, Any] = dict.fromkeys(context.more, MASK)
    return {**{key: getattr(context, key) for key in FIELDS}, **context.known(), **hidden}


def _origin(context: typer.Context, name: str, used: str) -> str:
    """Place that a setting is from, in words."""
    source = context.get_parameter_source(name)
    variable = next(one.envvar for one in context.command.params if one.name == name)
    return {
        "COMMANDLINE": f"option --{name}",
        "ENVIRONMENT": f"environment {variable}",
        "DEFAULT_MAP": f"context {used}",
    }.get(source.name if source is not None else "", "default")
