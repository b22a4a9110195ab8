"""Commands on base models: add, alias, ls, rm."""

from typing import Annotated

import typer

from hotslot.cli import options
from hotslot.cli.options import JsonOption, StoreOption, TenantOption, open_client
from hotslot.cli.output import ask, print_document, say
from hotslot.cli.output import show as show_parts
from hotslot.cli.rendering import base_models_table
from hotslot.cli.sources import HubName, parse_base_source
from hotslot.contract.catalog import BaseModel
from hotslot.errors import SourceNotFoundError

app = typer.Typer(help="Base models, which adapters are checked against.", no_args_is_help=True)


@app.command("add")
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


@app.command("ls")
def ls(
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """List the base models that adapters can be admitted for.

    JSON: {base_models: [{name, digest, model_type, num_modules, create_time, superseded}]}.
    """
    with open_client(store=store, tenant=tenant) as client:
        models = list(client.store.list_base_models())
    if as_json:
        print_document({"base_models": [_document(model) for model in models]})
    elif models:
        show_parts(base_models_table(models))
    else:
        say("no base models; `hotslot base add SOURCE` registers one, and so does a worker when it starts")


@app.command("rm")
def rm(
    base_model: Annotated[
        str, typer.Argument(metavar="NAME|DIGEST", help="The base model; a digest removes all of its names.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    store: StoreOption = options.STORE,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Forget a base model that no adapter was admitted for.

    JSON: {removed: [{name, digest, model_type, num_modules, create_time, superseded}]}.
    """
    if not yes:
        ask(f"Forget the base model {base_model}?")
    with open_client(store=store, tenant=tenant) as client:
        gone = client.store.delete_base_model(base_model)
    if as_json:
        print_document({"removed": [_document(model) for model in gone]})
    else:
        for model in gone:
            print(f"removed {model.spec.name}, base model {model.digest}")


@app.command("alias")
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
        model = client.store.add_base_model_alias(base, name)
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
