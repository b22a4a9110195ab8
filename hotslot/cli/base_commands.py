"""Commands on base models: add, alias, ls, rm."""

from typing import Annotated

import typer

from hotslot.cli import options
from hotslot.cli.command_line import Command, Commands
from hotslot.cli.digests import full_base
from hotslot.cli.options import JsonOption, StoreOption, TenantOption, open_client
from hotslot.cli.output import (
    FormOption,
    ListForm,
    QuietOption,
    WatchOption,
    ask,
    each,
    print_document,
    print_list,
    say,
)
from hotslot.cli.rendering import base_models_table
from hotslot.contract.catalog import BaseModel
from hotslot.errors import SourceNotFoundError
from hotslot.sources import HubName, parse_base_source

app = typer.Typer(cls=Commands, help="Base models, which adapters are checked against.", no_args_is_help=True)


@app.command("add", cls=Command)
def add(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A folder with config.json and safetensors, or hf:ORG/NAME\\[@REVISION]."
        ),
    ],
    name: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Name of the base model in adapters' configs; by default the folder as given, or ORG/NAME.",
        ),
    ] = "",
    move: Annotated[bool, typer.Option("--move", help="Take the name from another base model that has it.")] = False,
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Register a base model, so that adapters are admitted for it before a worker serves it.

    The name stands for it from then on. --move, by the tenant that registered the name or by those who operate the
    store, has it stand for another one; adapters stay with the model that they were admitted for.

    A repository is downloaded into the hub's cache, weights included: they are part of what tells models apart.

    JSON: {name, digest, model_type, num_modules, create_time, superseded}.
    """
    # The spec needs numpy, and other commands do without it.
    from hotslot.base_fetch import fetch_base_model
    from hotslot.formats.base_model import spec_from_folder

    where = parse_base_source(source)
    with open_client(store=store, tenant=tenant) as client:
        if isinstance(where, HubName):
            folder, default_name = fetch_base_model(where.repo_id, where.revision), where.repo_id
        else:
            folder, default_name = where, source
        if not folder.is_dir():
            raise SourceNotFoundError(f"{source} is not a folder; a repository is hf:ORG/NAME", source)
        model = client.store.register_base_model(spec_from_folder(folder, name or default_name), move=move)
    if as_json:
        print_document(_document(model))
    else:
        print(f"{model.spec.name} is base model {model.digest}")
        say(f"{model.spec.model_type}, {len(model.spec.modules)} modules")


@app.command("ls", cls=Command)
def ls(
    form: FormOption = ListForm.TABLE,
    quiet: QuietOption = False,
    watch: WatchOption = False,
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """List the base models that adapters can be admitted for.

    JSON: {base_models: [{name, digest, model_type, num_modules, create_time, superseded}]}.
    """
    with open_client(store=store, tenant=tenant) as client:
        models = list(client.store.list_base_models())
    print_list(
        form,
        {"base_models": [_document(model) for model in models]},
        [model.spec.name for model in models],
        lambda wide: base_models_table(models),
        nothing="no base models; `hotslot base add SOURCE` registers one, and so does a worker when it starts",
    )


@app.command("rm", cls=Command)
def rm(
    base_models: Annotated[
        list[str], typer.Argument(metavar="NAME|DIGEST…", help="Base models; a digest removes all names of one.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Forget a base model that no adapter was admitted for.

    JSON: {removed: [{name, digest, model_type, num_modules, create_time, superseded}]}; of several a list.
    """

    def act(named: str) -> tuple[dict[str, object], str]:
        gone = client.store.delete_base_model(full_base(client, named))
        lines = [f"removed {model.spec.name}, base model {model.digest}" for model in gone]
        return {"removed": [_document(model) for model in gone]}, "\n".join(lines)

    for named in base_models if not yes else []:
        ask(f"Forget the base model {named}?")
    with open_client(store=store, tenant=tenant) as client:
        each(base_models, act, as_json=as_json)


@app.command("alias", cls=Command)
def alias(
    base: Annotated[str, typer.Argument(metavar="BASE", help="A registered base model, by name or digest.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Further name of the base model in adapters' configs.")],
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Let a further name stand for a base model: that of a local path, or of a quantised copy.

    JSON: {name, digest, model_type, num_modules, create_time}.
    """
    with open_client(store=store, tenant=tenant) as client:
        model = client.store.add_base_model_alias(full_base(client, base), name)
    if as_json:
        print_document(_document(model))
    else:
        print(f"{model.spec.name} is base model {model.digest}")


def _document(model: BaseModel) -> dict[str, object]:
    return {
        "name": model.spec.name,
        "digest": model.digest,
        "model_type": model.spec.model_type,
        "num_modules": len(model.spec.modules),
        "create_time": model.create_time,
        "superseded": model.superseded,
    }
