"""The `hotslot` command: its subcommands, and what happens when one fails."""

import os
import sys
from collections.abc import Sequence

import typer

from hotslot.cli import (
    backup_commands,
    base_commands,
    catalog_commands,
    fleet_commands,
    generate_commands,
    policy_commands,
    removal_commands,
    up,
    worker_commands,
)
from hotslot.cli.failures import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, report
from hotslot.errors import HotslotError

app = typer.Typer(
    name="hotslot",
    help="Push, serve and mix LoRA adapters. HOTSLOT_STORE and HOTSLOT_WORKER name the endpoints. Proxy variables of "
    "the environment are for downloads alone, unless HOTSLOT_USE_PROXY is true.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_EVERYTHING = "On this machine"
_STORE = "Adapters in the store"
_GENERATE = "Generate"
_FLEET = "The fleet"
_WORKER = "One worker"

app.command(rich_help_panel=_EVERYTHING)(up.up)
app.command(rich_help_panel=_EVERYTHING)(backup_commands.backup)
app.command(rich_help_panel=_EVERYTHING)(backup_commands.restore)
app.command(rich_help_panel=_STORE)(catalog_commands.push)
app.command("import", rich_help_panel=_STORE)(catalog_commands.import_)
app.command(rich_help_panel=_STORE)(catalog_commands.ls)
app.command(rich_help_panel=_STORE)(catalog_commands.show)
app.command(rich_help_panel=_STORE)(catalog_commands.validate)
app.command(rich_help_panel=_STORE)(catalog_commands.tag)
app.command(rich_help_panel=_STORE)(removal_commands.rm)
app.command(rich_help_panel=_STORE)(removal_commands.undelete)
app.add_typer(base_commands.app, name="base", rich_help_panel=_STORE)
app.add_typer(policy_commands.app, name="policy", rich_help_panel=_STORE)
app.command(rich_help_panel=_GENERATE)(generate_commands.generate)
app.command(rich_help_panel=_GENERATE)(generate_commands.chat)
app.command(rich_help_panel=_FLEET)(fleet_commands.workers)
app.command(rich_help_panel=_FLEET)(fleet_commands.placements)
app.command(rich_help_panel=_FLEET)(fleet_commands.top)
app.command(rich_help_panel=_WORKER)(worker_commands.status)
app.command(rich_help_panel=_WORKER)(worker_commands.load)
app.command(rich_help_panel=_WORKER)(worker_commands.unload)
app.command(rich_help_panel=_WORKER)(worker_commands.pin)
app.command(rich_help_panel=_WORKER)(worker_commands.unpin)
app.command(rich_help_panel=_WORKER)(worker_commands.drain)
app.command(rich_help_panel=_WORKER)(worker_commands.undrain)


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code and raises nothing that a user can cause."""
    try:
        code = app(args=list(arguments), prog_name="hotslot", standalone_mode=False)
        return int(code or 0)
    except HotslotError as exc:
        return report(exc, as_json="--json" in arguments)
    except typer.TyperException as exc:
        return _report_usage(exc)
    except BrokenPipeError:
        # The reader of our output has seen enough; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as exc:
        print(f"hotslot: {exc}", file=sys.stderr)
        return EXIT_FAILURE
    except (KeyboardInterrupt, typer.Abort):
        print("hotslot: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _report_usage(error: typer.TyperException) -> int:
    """Print one line in place of typer's box; wrong arguments know the command that they were given to."""
    context: typer.Context | None = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "hotslot"
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    if not message:
        return EXIT_USAGE  # Without arguments the help was shown.
    print(f"hotslot: {message.rstrip('.')}; `{command} --help` explains it", file=sys.stderr)
    return EXIT_USAGE


def main() -> None:
    """Entry point of the console script."""
    raise SystemExit(run(sys.argv[1:]))
