"""Command lines as people type them: further names, options before the command, and suggestions that do no harm."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from hotslot.cli.interrupts import interruptible_pauses
from hotslot.cli.options import ContextOption, context_defaults
from hotslot.cli.output import ListForm
from hotslot.contexts import FIELDS
from hotslot.errors import InvalidContextsError

ALIASES = {
    "list": "ls",
    "delete": "rm",
    "remove": "rm",
    "inspect": "show",
    "ps": "placements",
    "stop": "down",
    "copy": "cp",
}
"""Further names of commands, in every group that has them; `ps` lists adapters that run, as `ollama ps` does."""
WORDS_OF_OTHERS = {
    "images": "ls", "get": "ls", "search": "ls", "describe": "show", "rollout": "history",
    "create": "push", "publish": "push", "upload": "push", "add": "push", "apply": "push", "download": "pull",
    "serve": "up", "start": "up", "compose": "up", "models": "base ls", "nodes": "workers", "stats": "top",
    "info": "status", "config": "context", "complete": "generate", "ask": "generate", "scale": "policy set",
    "uncordon": "undrain", "lora": "ls",
}  # fmt: skip
"""Commands of docker, ollama, vllm, kubectl and uv, each with the one that does the like here; none takes away."""
DESTRUCTIVE_COMMANDS = frozenset({
    "rm", "delete", "remove", "unload", "unpin", "drain", "down", "stop", "disable", "restore", "prune", "gc", "logout",
})  # fmt: skip
DESTRUCTIVE_OPTIONS = frozenset({"--force", "--yes", "--move"})
"""No suggestion points at these: it may be followed without reading."""
WATCH_S = 2.0
CONTEXT_PARAMETER = "context_name"
_OUTPUT = ("-o", "--output")
_EXPECTED = "Input should be "
"""Beginning of what is wrong with a value, in the words of the parser."""


class Command(TyperCommand):
    """One command; `-o json` is its `--json`, `--watch` runs it again and again, and a context has its defaults."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        """A command that calls anyone has `--context`, before its `--json`."""
        super().__init__(*args, **settings)
        names = [parameter.name for parameter in self.params]
        if set(names) & set(FIELDS) and CONTEXT_PARAMETER not in names:
            self.params.append(_context_option())

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments."""
        names = {parameter.name for parameter in self.params}
        if "as_json" in names and "form" not in names:
            args = list(_with_json(ctx, args))
        with _values_quoted():
            rest: list[str] = super().parse_args(ctx, args)
        if "form" in names:
            if ctx.params["quiet"]:
                ctx.params["form"] = ListForm.NAME
            elif ctx.params["as_json"]:
                ctx.params["form"] = ListForm.JSON
            ctx.params["as_json"] = ctx.params["form"] == ListForm.JSON
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command, with `--watch` until Ctrl-C; a terminal shows the last run alone."""
        if not ctx.params.get("watch"):
            return super().invoke(ctx)
        with interruptible_pauses() as pause:
            while True:
                if sys.stdout.isatty():
                    print("\x1b[H\x1b[2J", end="")
                super().invoke(ctx)
                sys.stdout.flush()
                pause(WATCH_S)


class ToleratingCommand(Command):
    """A command that runs with contexts that cannot be read, and tells of them itself."""


class Commands(TyperGroup):
    """Commands by name and by further names."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        return self.commands.get(cmd_name) or self.commands.get(ALIASES.get(cmd_name, ""))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments; options of the command that stand before it go behind it."""
        with _values_quoted():
            rest: list[str] = super().parse_args(ctx, self._command_first(args))
        return rest

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is meant; a usage error suggests names, but none of a command that takes away."""
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            near = suggestions(args[0], (*self.commands, *(a for a, name in ALIASES.items() if name in self.commands)))
            hint = f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
            if ctx.parent is None and args[0] in WORDS_OF_OTHERS:
                hint = f"; here it is `hotslot {WORDS_OF_OTHERS[args[0]]}`"
            ctx.fail(f"No such command {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)

    def _command_first(self, args: list[str]) -> list[str]:
        """Arguments with the command in front: the first word that leaves only its own options before it."""
        own = {name for parameter in self.params for name in (*parameter.opts, *parameter.secondary_opts)}
        if not args or not args[0].startswith("-") or args[0].partition("=")[0] in {*own, "-h", "--help", "--"}:
            return args
        # A mistyped command is found by the options of all.
        for of in (lambda word: self.get_command(None, word), lambda word: None if word.startswith("-") else self):
            for index, word in enumerate(args):
                command = of(word)
                if command is not None and _are_options(args[:index], command):
                    return [word, *args[:index], *args[index + 1 :]]
        return args


@contextmanager
def _values_quoted() -> Iterator[None]:
    """Have an error about an option's value say which value was found: a line may have several numbers."""
    try:
        yield
    except typer.BadParameter as exc:
        problems: Callable[[], Sequence[dict[str, Any]]] = getattr(exc.__cause__, "errors", tuple)
        for problem in problems()[:1]:
            if repr(problem["input"]) in exc.message:
                break
            told = str(problem["msg"]).partition(", unable to")[0]
            expected = told.removeprefix(_EXPECTED)
            says = f"expected {expected}" if expected != told else told[:1].lower() + told[1:]
            exc.message = f"found {problem['input']!r}, {says}"
        raise


def suggestions(mistyped: str, names: Sequence[str]) -> list[str]:
    """Names that are close to a mistyped one; none that takes away."""
    harmless = [name for name in names if name not in DESTRUCTIVE_COMMANDS | DESTRUCTIVE_OPTIONS]
    return get_close_matches(mistyped, harmless, n=2, cutoff=0.7)


def wants_json(arguments: Sequence[str]) -> bool:
    """Tell if a command line asks for JSON, also where it is wrong otherwise."""
    known = arguments[: arguments.index("--")] if "--" in arguments else arguments
    joined = {f"{name}={value}" for name, value in pairwise(known) if name in _OUTPUT}
    return bool({"--json", "-ojson", *(f"{name}=json" for name in _OUTPUT)} & {*known, *joined})


@cache
def _context_option() -> Any:
    """The option `--context`, which is read first and leaves its defaults for the others."""

    def of(context_name: ContextOption = "") -> None:
        """Have the option."""

    app = typer.Typer(add_completion=False)
    app.command()(of)
    option: Any = next(one for one in typer.main.get_command(app).params if one.name == CONTEXT_PARAMETER)
    option.is_eager, option.expose_value, option.callback = True, False, _take_context
    return option


def _take_context(ctx: Any, parameter: Any, value: str | None) -> str | None:
    if not ctx.resilient_parsing:
        with suppress(*([InvalidContextsError] if isinstance(ctx.command, ToleratingCommand) else [])):
            ctx.default_map = context_defaults(value or "")[1]
    return value


def _options(command: Any) -> Iterator[Any]:
    for parameter in command.params:
        if parameter.param_type_name == "option":
            yield parameter
    for inner in getattr(command, "commands", {}).values():
        yield from _options(inner)


def _are_options(words: list[str], command: Any) -> bool:
    """Tell if words are options of a command, or of those in its group, each with its value."""
    takes_value = {name: not option.is_flag for option in _options(command)
                   for name in (*option.opts, *option.secondary_opts)}  # fmt: skip
    takes_value |= dict.fromkeys(_OUTPUT, True)
    rest = list(words)
    while rest:
        name, equals, _ = rest.pop(0).partition("=")
        if name not in takes_value:
            return False
        if takes_value[name] and not equals:
            if not rest:
                return False
            rest.pop(0)
    return True


def _with_json(ctx: Any, args: list[str]) -> Iterator[str]:
    """Arguments with `--json` for `-o json`, which alone is known where nothing is listed."""
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word == "--":
            yield from (word, *rest)
            return
        name, equals, value = word.partition("=")
        if word.startswith("-o") and not word.startswith("--") and len(word) > 2 and not equals:
            name, value, equals = "-o", word[2:], "="
        if name not in _OUTPUT:
            yield word
            continue
        value = value if equals else rest.pop(0) if rest else ""
        if value != "json":
            ctx.fail(f"Invalid value for '-o': found {value!r}, expected json; name and wide are for lists")
        yield "--json"
