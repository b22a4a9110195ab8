"""Where something comes from, as people write it: `hf:ORG/NAME[@REVISION]`, or a folder."""

from dataclasses import dataclass
from pathlib import Path

from shared.errors import FieldViolation, InvalidRequestError


@dataclass(frozen=True, slots=True)
class HubName:
    """A Hugging Face repository at a revision; an empty one is the default branch."""

    repo_id: str
    revision: str = ""


@dataclass(frozen=True, slots=True)
class StoreFolder:
    """A folder on the store's machine."""

    path: str


def parse_source(text: str) -> HubName | StoreFolder:
    """What an adapter is imported from; raises InvalidRequestError."""
    scheme, _, rest = text.partition(":")
    if scheme != "dir":
        return _hub_name(text, "hf:ORG/NAME, hf:ORG/NAME@REVISION or dir:/PATH")
    if not rest.startswith("/"):
        raise _bad_source(text, "dir: and an absolute path on the store's machine")
    return StoreFolder(rest)


def parse_base_source(text: str) -> HubName | Path:
    """What a base model is registered from: a repository, or a folder here; raises InvalidRequestError."""
    if not text.startswith("hf:"):
        return Path(text)
    return _hub_name(text, "a folder, hf:ORG/NAME or hf:ORG/NAME@REVISION")


def _hub_name(text: str, expected: str) -> HubName:
    """The repository in `hf:ORG/NAME[@REVISION]`; `expected` is what else may stand there, for the error."""
    scheme, _, rest = text.partition(":")
    repo_id, _, revision = rest.partition("@")
    parts = repo_id.split("/")
    if scheme != "hf" or len(parts) != 2 or not all(parts):
        raise _bad_source(text, expected)
    return HubName(repo_id, revision)


def _bad_source(text: str, expected: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation("SOURCE", f"found {text!r}, expected {expected}")])
