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
    if scheme == "dir":
        if not rest.startswith("/"):
            problem = f"found {text!r}, expected dir: and an absolute path on the store's machine"
            raise InvalidRequestError([FieldViolation("SOURCE", problem)])
        return StoreFolder(rest)
    name = parse_hub_name(text)
    if name is None:
        problem = f"found {text!r}, expected hf:ORG/NAME, hf:ORG/NAME@REVISION or dir:/PATH"
        raise InvalidRequestError([FieldViolation("SOURCE", problem)])
    return name


def parse_base_source(text: str) -> HubName | Path:
    """What a base model is registered from: a repository, or a folder here; raises InvalidRequestError."""
    if not text.startswith("hf:"):
        return Path(text)
    name = parse_hub_name(text)
    if name is None:
        problem = f"found {text!r}, expected a folder, hf:ORG/NAME or hf:ORG/NAME@REVISION"
        raise InvalidRequestError([FieldViolation("SOURCE", problem)])
    return name


def parse_hub_name(text: str) -> HubName | None:
    """`hf:ORG/NAME[@REVISION]`; None for anything else."""
    scheme, colon, rest = text.partition(":")
    repo_id, _, revision = rest.partition("@")
    parts = repo_id.split("/")
    if not colon or scheme != "hf" or len(parts) != 2 or not all(parts):
        return None
    return HubName(repo_id, revision)
