"""The `hotslot` command: its subcommands, and what happens when one fails."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import typer

from hotslot.cli import (
    backup_commands,
    base_commands,
    catalog_commands,
    context_commands,
    doctor,
    drain_commands,
    fleet_commands,
    garbage_command,
    generate_commands,
    listing_commands,
    login_commands,
    own_commands,
    plan_command,
    policy_commands,
    quota_command,
    removal_commands,
    retention_commands,
    running_commands,
    share_commands,
    token_commands,
    up,
    worker_commands,
)
from hotslot.cli.command_line import ALIASES, DESTRUCTIVE_OPTIONS, Command, Commands, ToleratingCommand, wants_json
from hotslot.cli.failures import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, report
from hotslot.errors import HotslotError, InvalidRequestError

app = typer.Typer(
    name="hotslot",
    cls=Commands,
    help="Push, serve and mix LoRA adapters. HOTSLOT_STORE and HOTSLOT_WORKER name the endpoints. Proxy variables of "
    "the environment are for downloads alone, unless HOTSLOT_USE_PROXY is true.",
    epilog="Further names: " + ", ".join(f"{alias} = {name}" for alias, name in ALIASES.items()) + ".",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.callback()(own_commands.root)

_EVERYTHING = "On this machine"
_STORE = "Adapters in the store"
_GENERATE = "Generate"
_FLEET = "The fleet"
_WORKER = "One worker"

app.command(cls=Command, rich_help_panel=_EVERYTHING)(up.up)
app.command(cls=Command, rich_help_panel=_EVERYTHING)(running_commands.down)
app.command(cls=Command, rich_help_panel=_EVERYTHING)(running_commands.renew)
app.command(cls=Command, rich_help_panel=_EVERYTHING)(running_commands.logs)
app.command(cls=ToleratingCommand, rich_help_panel=_EVERYTHING)(doctor.doctor)
app.command(cls=Command, rich_help_panel=_EVERYTHING)(own_commands.version)
app.command("help", cls=Command, rich_help_panel=_EVERYTHING)(own_commands.help_)
app.command(cls=Command, rich_help_panel=_EVERYTHING)(own_commands.completion)
app.command(cls=Command, rich_help_panel=_EVERYTHING)(backup_commands.backup)
app.command(cls=Command, rich_help_panel=_EVERYTHING)(backup_commands.restore)
app.command("plan", cls=Command, rich_help_panel=_EVERYTHING)(plan_command.plan_command)
app.add_typer(context_commands.app, name="context", rich_help_panel=_EVERYTHING)
app.add_typer(token_commands.app, name="token", rich_help_panel=_EVERYTHING)
app.command(cls=Command, rich_help_panel=_EVERYTHING)(login_commands.login)
app.command(cls=Command, rich_help_panel=_EVERYTHING)(login_commands.logout)
app.command(cls=Command, rich_help_panel=_EVERYTHING)(login_commands.whoami)
app.command(cls=Command, rich_help_panel=_STORE)(catalog_commands.push)
app.command(cls=Command, rich_help_panel=_STORE)(catalog_commands.pull)
app.command("import", cls=Command, rich_help_panel=_STORE)(catalog_commands.import_)
app.command(cls=Command, rich_help_panel=_STORE)(listing_commands.ls)
app.command(cls=Command, rich_help_panel=_STORE)(listing_commands.show)
app.command(cls=Command, rich_help_panel=_STORE)(listing_commands.history)
app.command(cls=Command, rich_help_panel=_STORE)(catalog_commands.validate)
app.command(cls=Command, rich_help_panel=_STORE)(catalog_commands.tag)
app.command(cls=Command, rich_help_panel=_STORE)(catalog_commands.cp)
app.command(cls=Command, rich_help_panel=_STORE)(removal_commands.rm)
app.command(cls=Command, rich_help_panel=_STORE)(removal_commands.undelete)
app.command(cls=Command, rich_help_panel=_STORE)(retention_commands.prune)
app.command(cls=Command, rich_help_panel=_STORE)(garbage_command.gc)
app.command(cls=Command, rich_help_panel=_STORE)(quota_command.quota)
app.command(cls=Command, rich_help_panel=_STORE)(share_commands.share)
app.add_typer(base_commands.app, name="base", rich_help_panel=_STORE)
app.add_typer(policy_commands.app, name="policy", rich_help_panel=_STORE)
app.command(cls=Command, rich_help_panel=_GENERATE)(generate_commands.generate)
app.command(cls=Command, rich_help_panel=_GENERATE)(generate_commands.run)
app.command(cls=Command, rich_help_panel=_GENERATE)(generate_commands.chat)
app.command(cls=Command, rich_help_panel=_FLEET)(fleet_commands.workers)
app.command(cls=Command, rich_help_panel=_FLEET)(fleet_commands.placements)
app.command(cls=Command, rich_help_panel=_FLEET)(fleet_commands.top)
app.command(cls=Command, rich_help_panel=_WORKER)(worker_commands.status)
app.command(cls=Command, rich_help_panel=_WORKER)(worker_commands.load)
app.command(cls=Command, rich_help_panel=_WORKER)(worker_commands.unload)
app.command(cls=Command, rich_help_panel=_WORKER)(worker_commands.pin)
app.command(cls=Command, rich_help_panel=_WORKER)(worker_commands.unpin)
app.command(cls=Command, rich_help_panel=_WORKER)(worker_commands.default)
app.command(cls=Command, rich_help_panel=_WORKER)(worker_commands.enable)
app.command(cls=Command, rich_help_panel=_WORKER)(worker_commands.disable)
app.command(cls=Command, rich_help_panel=_WORKER)(drain_commands.drain)
app.command(cls=Command, rich_help_panel=_WORKER)(drain_commands.undrain)


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code and raises nothing that a user can cause."""
    as_json = wants_json(arguments)
    try:
        code = int(app(args=list(arguments), prog_name="hotslot", standalone_mode=False) or 0)
    except HotslotError as exc:
        return report(exc, as_json=as_json)
    except typer.TyperException as exc:
        return _report_usage(exc, as_json=as_json)
    except (BrokenPipeError, SystemExit) as exc:
        # The reader of our output has seen enough; nothing more can be said to it. Libraries exit when they notice.
        if not isinstance(exc.__context__ if isinstance(exc, SystemExit) else exc, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as exc:
        print(f"hotslot: {exc}", file=sys.stderr)
        return EXIT_FAILURE
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    if code == EXIT_INTERRUPTED:
        # A terminal has written ^C where the cursor was.
        print("\nhotslot: interrupted" if sys.stderr.isatty() else "hotslot: interrupted", file=sys.stderr)
    return code


def _report_usage(error: typer.TyperException, *, as_json: bool) -> int:
    """Print one line in place of typer's box; wrong arguments know the command that they were given to."""
    context: typer.Context | None = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "hotslot"
    if possibilities := getattr(error, "possibilities", None):
        error.possibilities = [name for name in possibilities if name not in DESTRUCTIVE_OPTIONS]  # type: ignore[attr-defined]
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    if not message:
        return EXIT_USAGE  # Without arguments the help was shown.
    message = message.replace("Value error, ", "").rstrip(".")  # words of the library that reads options
    line = f"{message}; `{command} --help` explains it"
    return report(InvalidRequestError([], line), as_json=as_json)


def main() -> NoReturn:
    """Entry point of the console script."""
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    # Nothing is left to be done, and on a busy machine the interpreter waits seconds for grpc's threads.
    os._exit(code)
