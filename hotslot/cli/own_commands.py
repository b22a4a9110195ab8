"""Commands about the command itself: version, help, completion."""

from typing import Annotated

import typer
from typer._completion_shared import Shells, get_completion_script
from typer.core import TyperGroup

from hotslot.cli.options import JsonOption
from hotslot.cli.output import print_document
from hotslot.rpc.server_facts import installed_version


def _print_version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


def root(
    show_version: Annotated[
        bool, typer.Option("--version", "-V", help="Version of this command.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Stand before every command."""


def version(as_json: JsonOption = False) -> None:
    """Print the version of this command.

    JSON: {version}.
    """
    found = installed_version()
    if as_json:
        print_document({"version": found})
    else:
        print(f"hotslot {found}")


def help_(
    context: typer.Context,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND]…", help="The command; without one, all are listed.")
    ] = None,
) -> None:
    """Show the help of a command, or of all."""
    everything = context.find_root().command
    assert isinstance(everything, TyperGroup)
    everything.main([*(command or []), "--help"], prog_name="hotslot", standalone_mode=False)


def completion(
    shell: Annotated[Shells, typer.Argument(metavar="SHELL", help="The shell: bash, zsh, fish, powershell or pwsh.")],
) -> None:
    """Print the completion script of a shell, as for `source <(hotslot completion bash)`."""
    print(get_completion_script(prog_name="hotslot", complete_var="_HOTSLOT_COMPLETE", shell=shell.value))
