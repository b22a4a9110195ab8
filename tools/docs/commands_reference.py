"""Reference of the command: each subcommand with its arguments, options and help."""

import inspect
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import typer

from hotslot.cli.app import app
from hotslot.cli.command_line import ALIASES
from tools.docs.markdown import code, prose, table

_LEFT_OUT = ("help", "install_completion", "show_completion")
_TYPES: Mapping[type, str] = {str: "TEXT", int: "INTEGER", float: "NUMBER", Path: "PATH"}


def page() -> str:
    """The page."""
    (_, root), *others = commands()
    parts = [f"# Commands\n\n{_sentences(root.help)}\n", _options(root)]
    aliases = ", ".join(f"{code(alias)} is {code(name)}" for alias, name in ALIASES.items())
    parts.append(f"Further names: {aliases}.\n")
    for path, command in others:
        if not hasattr(command, "commands"):
            parts.append(f"## `{' '.join(path)}`\n\n{_sentences(command.help)}\n")
            parts.append(f"```text\n{usage(path, command)}\n```\n")
            parts.append(_options(command))
    return "\n".join(part for part in parts if part)


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each command with its path, groups included, the command itself first."""
    yield from _commands(("hotslot",), typer.main.get_command(app))


def _commands(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands((*path, name), inner)


def parameters(command: Any) -> list[Any]:
    """Arguments and options of a command, but for those that every command has."""
    return [parameter for parameter in command.params if parameter.name not in _LEFT_OUT]


def usage(path: tuple[str, ...], command: Any) -> str:
    """Line that one types."""
    arguments = [_argument(parameter) for parameter in parameters(command) if _is_argument(parameter)]
    return " ".join([*path, "[OPTIONS]", *arguments])


def option_names(parameter: Any) -> list[str]:
    """Names of an option, the long one first; of an argument its metavar."""
    if _is_argument(parameter):
        return [_argument(parameter)]
    return sorted([*parameter.opts, *parameter.secondary_opts], key=lambda name: not name.startswith("--"))


def _options(command: Any) -> str:
    rows = []
    for parameter in parameters(command):
        names = ", ".join(code(name) for name in option_names(parameter))
        value = "" if _is_argument(parameter) or parameter.is_flag else f" {code(_value(parameter))}"
        rows.append((names + value, _default(parameter), _sentences(parameter.help)))
    return table(("argument or option", "default", "meaning"), rows) if rows else ""


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _argument(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name.upper())
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _value(parameter: Any) -> str:
    """Words for an option's value: its metavar, its choices, or its type with the bounds."""
    if parameter.metavar:
        return str(parameter.metavar)
    kind = parameter.type_descriptor.annotation
    kind = next((inner for inner in get_args(kind) if inner is not NoneType), kind)
    if issubclass(kind, Enum):
        return "|".join(str(choice.value) for choice in kind)
    bounds = [f"{sign}{bound}" for sign, bound in (("≥", parameter.min), ("≤", parameter.max)) if bound is not None]
    return " ".join([_TYPES[kind], *bounds])


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required:
        return "must be given"
    if value in (None, (), [], "", False):
        return ""
    if isinstance(value, Enum):
        value = value.value
    return code(str(value).lower() if isinstance(value, bool) else str(value))


def _sentences(text: str | None) -> str:
    """Help as prose; rich's escaped brackets are brackets."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text or "").replace("\\[", "["))
    return "\n\n".join(prose(" ".join(paragraph.split())) for paragraph in paragraphs)
