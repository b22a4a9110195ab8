"""Reference of the settings: each `HOTSLOT_*` variable and flag of the three services and of the command."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from controller_service.settings import ControllerSettings
from gateway_service.settings import GatewaySettings, OptionalAddress
from hotslot.clients.environment import TIMEOUT, USE_PROXY
from shared.settings import ENV_PREFIX, AdvertisedAddress, DialledAddress, ListenAddress, SecretUrl, Settings, TextList
from store_service.settings import StoreSettings
from tools.docs.commands_reference import commands, option_names
from tools.docs.markdown import code, prose, table, target
from worker_service.settings import NumberList, WorkerSettings

SERVICES: Mapping[str, type[Settings]] = {
    "store_service": StoreSettings,
    "worker_service": WorkerSettings,
    "gateway_service": GatewaySettings,
    "controller_service": ControllerSettings,
}
UNITS: Mapping[str, str] = {
    "_bytes_per_s": "bytes a second",
    "_bytes": "bytes",
    "_s": "seconds",
    "_tokens": "tokens",
    "_rank": "ranks",
    "_port": "port",
}
"""Units by the end of a setting's name."""
_BY_METADATA: tuple[tuple[Any, str], ...] = (
    (ListenAddress, "host:port or unix:/path"),
    (DialledAddress, "host:port"),
    (AdvertisedAddress, "host:port"),
    (OptionalAddress, "host:port"),
    (TextList, "texts, by commas"),
    (NumberList, "numbers, by commas"),
)
_NAMES: Mapping[object, str] = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}
_BOUNDS: Mapping[str, str] = {"ge": "at least {:,}", "gt": "above {:,}", "le": "at most {:,}", "lt": "below {:,}"}


def page() -> str:
    """The page."""
    parts = [_HEAD]
    for module, settings in SERVICES.items():
        parts.append(f"## `python -m {module}`\n\n{prose((settings.__doc__ or '').strip())}\n")
        parts += [_section(module, name, field) for name, field in settings.model_fields.items()]
    parts.append(_COMMAND)
    parts.append(table(("variable", "read by", "meaning"), command_rows()))
    return "\n".join(parts)


def _section(module: str, name: str, field: FieldInfo) -> str:
    flag = f"--{name.replace('_', '-')}"
    facts = [code(flag), type_of(field), default_of(field), unit_of(name)]
    heading = f"{target(anchor(module, name))}### `{ENV_PREFIX}{name.upper()}`"
    return f"{heading}\n\n{' · '.join(filter(None, facts))}\n\n{meaning_of(field)}\n"


def anchor(module: str, name: str) -> str:
    """Anchor of a setting on the page."""
    return f"{module.partition('_')[0]}-{name.replace('_', '-')}"


def meaning_of(field: FieldInfo) -> str:
    """Sentences under the setting."""
    return prose(" ".join((field.description or "").split()))


def unit_of(name: str) -> str:
    """Unit that the name of a setting ends with; empty where it counts, or is no number."""
    return next((unit for end, unit in UNITS.items() if f"_{name}".endswith(end)), "")


def default_of(field: FieldInfo) -> str:
    """Default in words."""
    value = field.default
    if value is PydanticUndefined:
        return "must be set"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, bool):
        return f"default {code(str(value).lower())}"
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    if value is None or value == "":
        return "not set by default"
    return f"default {code(f'{value:.15g}' if isinstance(value, float) else str(value))}"


def type_of(field: FieldInfo) -> str:
    """Type in words, with its bounds; raises KeyError for one that has no words yet."""
    for alias, words in _BY_METADATA:
        if all(item in field.metadata for item in alias.__metadata__):
            return words
    kind = _without_none(field.annotation)
    if get_origin(kind) is Literal:
        return " or ".join(code(str(value)) for value in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, SecretUrl):
        return "URL, a secret"
    if kind is SecretStr:
        return "text, a secret"
    found = [(getattr(item, name, None), words) for item in field.metadata for name, words in _BOUNDS.items()]
    bounds = [words.format(bound) for bound, words in found if bound is not None]
    bounds += ["not empty" for item in field.metadata if getattr(item, "min_length", 0)]
    return ", ".join([_NAMES[kind], *bounds])


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
        return kinds[0] if len(kinds) == 1 else annotation
    return annotation


def command_rows() -> Iterator[tuple[str, str, str]]:
    """Variables that the command reads, with the commands that do and their meaning."""
    found: dict[str, tuple[list[str], str]] = {}
    for path, command in commands():
        for option in command.params:
            for variable in [option.envvar] if isinstance(option.envvar, str) else option.envvar or ():
                users, meaning = found.setdefault(variable, ([], getattr(option, "help", None) or ""))
                users.append(f"{' '.join(path)} {option_names(option)[0]}")
    for variable, (users, meaning) in sorted(found.items()):
        shown = ", ".join(code(user) for user in users[:3]) + (f" and {len(users) - 3} more" if len(users) > 3 else "")
        yield code(variable), shown, prose(meaning.replace("\\[", "["))
    yield code(USE_PROXY), "all that call a store or a worker", prose(_USE_PROXY)
    yield code(TIMEOUT), "the Python client", prose(_TIMEOUT)


_USE_PROXY = (
    "Call the store and workers through the proxy that grpc_proxy, https_proxy or http_proxy names. Otherwise these "
    "variables are for downloads alone."
)
_TIMEOUT = "Deadline of a generation in seconds, where a call names none; 600 by default."
_HEAD = """# Settings

Each service reads its settings once, at its start: from `HOTSLOT_*` variables, or from flags of the same names, which
win (`HOTSLOT_NUM_SLOTS=4` is `--num-slots 4`). A wrong value ends the process with exit code 2 and a line that names
it; `--help` prints this list. Under each variable are its flag, its type with the bounds, its default and its unit.
"""
_COMMAND = """## `hotslot`

The command reads these; an option wins.
"""
