"""Contexts: deployments that a user has names for, with endpoints, tenant and credentials, in a file of the user's.

The command reads it for every call, and so do the clients: an option or an argument goes before a variable of the
environment, that before the context, and the context before the defaults. Credentials are places of files, which only
their owner reads. Fields that a later release keeps there stay as they are.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hotslot.content_files import PRIVATE, StagedFile, make_directory
from hotslot.endpoints import dialled_endpoint, is_same_place
from hotslot.errors import FieldViolation, InvalidContextsError, InvalidEndpointError, InvalidRequestError
from hotslot.file_lock import lock
from hotslot.ids import parse_tenant

FILE_NAME = "contexts.json"
CONTEXT_VARIABLE = "HOTSLOT_CONTEXT"
LOCAL = "local"
"""Context that `hotslot up` keeps."""
MAX_NAME_LENGTH = 64
FIELDS = ("store", "worker", "tenant")
"""Fields that stand for options of commands."""
CREDENTIALS = ("ca_file", "cert_file", "key_file", "token_file", "worker_name")
"""Fields that say how to call there: files by their absolute paths, and the name in workers' certificates."""
FILES = tuple(name for name in CREDENTIALS if name.endswith("_file"))


@dataclass(frozen=True, slots=True)
class SavedContext:
    """A named deployment; an empty field leaves the default."""

    store: str = ""
    worker: str = ""
    tenant: str = ""
    ca_file: str = ""
    """PEM file of the certificates that those of the servers must lead to."""
    cert_file: str = ""
    """PEM file of the caller's certificate."""
    key_file: str = ""
    token_file: str = ""
    worker_name: str = ""
    """Name that workers' certificates carry."""
    more: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    """Fields that are not known here, some of which may be secret."""

    def known(self) -> dict[str, str]:
        """The fields that say something."""
        return {name: value for name in (*FIELDS, *CREDENTIALS) if (value := getattr(self, name))}


@dataclass(frozen=True, slots=True)
class Contexts:
    """Everything in the file."""

    current: str = ""
    """Name of the context in use; empty for none."""
    named: Mapping[str, SavedContext] = field(default_factory=lambda: MappingProxyType({}))
    more: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    """Fields of the file that are not known here."""

    def get(self, name: str) -> SavedContext:
        """The context of that name; raises InvalidRequestError."""
        if name not in self.named:
            there = f"there are {', '.join(sorted(self.named))}" if self.named else "there is none"
            problem = f"no context {name[:80]!r}: {there}; `hotslot context set NAME --store HOST:PORT` makes one"
            raise InvalidRequestError([], problem)
        return self.named[name]

    def having(self, name: str, context: SavedContext) -> "Contexts":
        """The same with a context of that name."""
        return replace(self, named={**self.named, name: context})

    def using(self, name: str) -> "Contexts":
        """The same with another context in use; raises InvalidRequestError."""
        self.get(name)
        return replace(self, current=name)

    def without(self, name: str) -> "Contexts":
        """The same without a context, which is not in use then; raises InvalidRequestError."""
        self.get(name)
        left = {key: value for key, value in self.named.items() if key != name}
        return replace(self, named=left, current="" if self.current == name else self.current)


def contexts_path(environment: Mapping[str, str]) -> Path:
    """Place of the file, by the rules of XDG."""
    config = environment.get("XDG_CONFIG_HOME") or ""
    # A relative path is to be ignored: it would be another one in each folder.
    home = Path(environment.get("HOME") or "~").expanduser()
    return (Path(config) if config.startswith("/") else home / ".config") / "hotslot" / FILE_NAME


def chosen_context(environment: Mapping[str, str], name: str = "") -> tuple[str, SavedContext]:
    """Name and content of the context in use: `name`, else HOTSLOT_CONTEXT, else the file's; empty where none is.

    Raises InvalidRequestError for a name that is not in the file, and InvalidContextsError for a file that cannot be
    read.
    """
    return _chosen(read_contexts(contexts_path(environment)), environment, name)


def context_for(
    environment: Mapping[str, str], field_name: str, endpoint: str, name: str = "", default: str = ""
) -> SavedContext:
    """The context whose store, or worker by `field_name`, is this endpoint; an empty one where there is none.

    The one in use is asked first, then the others by name; one that names no such endpoint has the default. Raises what
    `chosen_context` raises.
    """
    contexts = read_contexts(contexts_path(environment))
    used, chosen = _chosen(contexts, environment, name)
    candidates = [*([chosen] if used else []), *(one for _, one in sorted(contexts.named.items()))]
    fitting = (one for one in candidates if is_same_place(getattr(one, field_name) or default, endpoint))
    return next(fitting, SavedContext())


def _chosen(contexts: Contexts, environment: Mapping[str, str], name: str) -> tuple[str, SavedContext]:
    name = name or environment.get(CONTEXT_VARIABLE) or contexts.current
    return (name, contexts.get(name)) if name else ("", SavedContext())


def read_contexts(path: Path) -> Contexts:
    """The file's content, empty where there is no file; raises InvalidContextsError naming what is wrong in it."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return Contexts()
    except OSError as exc:
        raise _unreadable(path, exc.strerror or str(exc)) from exc
    except (ValueError, RecursionError) as exc:
        raise _unreadable(path, f"it is no JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise _unreadable(path, "expected an object")
    current, named = document.pop("current", ""), document.pop("contexts", {})
    if not isinstance(current, str) or not isinstance(named, dict):
        raise _unreadable(path, "expected a text under `current` and an object under `contexts`")
    return Contexts(current, {name: _context(path, name, value) for name, value in named.items()}, document)


def change_contexts(path: Path, change: Callable[[Contexts], Contexts]) -> Contexts:
    """Change the file in a turn of its own, and return its new content; only its owner may read it.

    Raises what `change` and `read_contexts` raise, and OSError.
    """
    make_directory(path.parent)
    with _turn(path):
        before = read_contexts(path)
        after = change(before)
        if after != before:
            _write(path, after)
    return after


def checked_name(name: str) -> str:
    """A name for a context; raises InvalidRequestError."""
    if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable() or name.startswith("-") or " " in name:
        expected = f"expected 1 to {MAX_NAME_LENGTH} characters without blanks, and no - in front"
        raise InvalidRequestError([FieldViolation("NAME", f"found {name[:80]!r}, {expected}")])
    return name


def checked_context(context: SavedContext) -> SavedContext:
    """A context whose fields can be used; raises InvalidRequestError naming the field."""
    for name in ("store", "worker"):
        if text := getattr(context, name):
            try:
                dialled_endpoint(text)
            except InvalidEndpointError as exc:
                raise InvalidRequestError(exc.fields, f"{name}: {exc.message}") from exc
    if context.tenant:
        parse_tenant(context.tenant)
    if bool(context.cert_file) != bool(context.key_file):
        given, missing = ("cert_file", "key_file") if context.cert_file else ("key_file", "cert_file")
        raise InvalidRequestError(
            [FieldViolation(missing, f"a certificate and its key go together; found {given} alone")]
        )
    for name in FILES:
        if (text := getattr(context, name)) and not Path(text).expanduser().is_absolute():
            problem = f"found {text[:120]!r}, expected an absolute path: it is read from any folder"
            raise InvalidRequestError([FieldViolation(name, problem)])
    return context


def _context(path: Path, name: str, value: object) -> SavedContext:
    known = (*FIELDS, *CREDENTIALS)
    if not isinstance(value, dict) or any(not isinstance(value.get(key, ""), str) for key in known):
        raise _unreadable(path, f"context {name!r}: expected an object with texts for {', '.join(known)}")
    fields = {key: str(value.get(key, "")) for key in known}
    try:
        return checked_context(
            SavedContext(**fields, more={key: item for key, item in value.items() if key not in known})
        )
    except InvalidRequestError as exc:
        raise _unreadable(path, f"context {name!r}: {exc.message}") from exc


def _write(path: Path, contexts: Contexts) -> None:
    named = {name: {**context.known(), **context.more} for name, context in sorted(contexts.named.items())}
    document = {**({"current": contexts.current} if contexts.current else {}), "contexts": named, **contexts.more}
    stage = path.with_name(f".{path.name}.new")
    stage.unlink(missing_ok=True)
    staged = StagedFile(stage, mode=PRIVATE, digests=False)
    try:
        staged.write(json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n")
        staged.publish(path, mode=PRIVATE)
    finally:
        staged.discard()


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Keep other processes from changing the file meanwhile."""
    with path.with_name(f".{path.name}.lock").open("a") as file:
        lock(file.fileno())
        yield


def _unreadable(path: Path, problem: str) -> InvalidContextsError:
    return InvalidContextsError(str(path), problem)
