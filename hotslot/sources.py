"""Names of sources as people write them: a repository of the hub in any of its forms, a folder, or a URL.

A repository is `hf:ORG/NAME[@REVISION][#SUBFOLDER]`, `hf://ORG/NAME[@REVISION][/SUBFOLDER]`, or the address of one of
its pages, `https://huggingface.co/ORG/NAME[/tree/REVISION[/SUBFOLDER]]`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.source_urls import ARCHIVE_SUFFIXES, ArchiveUrl, ObjectFolderUrl, is_source_url, parse_source_url

DEMO_MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Base model of the demo, whose weights come from the package index."""
HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
HUB_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")
HUB_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_OTHER_KINDS = ("datasets", "spaces", "collections", "papers", "docs", "buckets")
_PAGES_OFHUB_FOLDERS = ("tree",)
_PAGES_OF_FILES = ("blob", "resolve", "raw")


@dataclass(frozen=True, slots=True)
class HubName:
    """A Hugging Face repository at a revision; an empty one is the default branch."""

    repo_id: str
    revision: str = ""
    subfolder: str = ""
    """Folder inside of the repository; empty for its root."""


@dataclass(frozen=True, slots=True)
class StoreFolder:
    """A folder on the store's machine."""

    path: str


def parse_source(text: str, digest: str = "") -> HubName | StoreFolder | ObjectFolderUrl | ArchiveUrl:
    """Parse the source that an adapter is imported from; `digest` is an archive's. Raises InvalidRequestError."""
    scheme, _, rest = text.partition(":")
    if _is_elsewhere(text.strip(), digest):
        return parse_source_url(text.strip(), digest, field="SOURCE")
    if digest:
        raise InvalidRequestError([FieldViolation("--digest", "is for an archive at https://")])
    if scheme != "dir":
        return parse_hub_name(text, "hf:ORG/NAME, hf:ORG/NAME@REVISION#SUBFOLDER or dir:/PATH")
    if not rest.startswith("/"):
        raise _bad_source(text, "dir: and an absolute path on the store's machine")
    return StoreFolder(rest)


def _is_elsewhere(text: str, digest: str) -> bool:
    """True for object storage, and for an archive at https, rather than a page of the hub."""
    if not is_source_url(text) or text.startswith("http://"):
        return False
    try:
        found = urlsplit(text)
        is_page = found.scheme == "https" and (found.hostname in HUB_HOSTS or not _looks_like_archive(found, digest))
    except ValueError:
        return False
    return not is_page


def _looks_like_archive(address: SplitResult, digest: str) -> bool:
    return bool(digest) or address.fragment.startswith("sha256") or address.path.endswith(ARCHIVE_SUFFIXES)


def parse_base_source(text: str) -> HubName | Path:
    """Parse the source that a base model is registered from: a repository, or a folder here; raises
    InvalidRequestError.
    """
    if not _is_of_hub(text):
        return Path(text)
    found = parse_hub_name(text, "a folder, hf:ORG/NAME or hf:ORG/NAME@REVISION")
    if found.subfolder:
        raise _bad_source(text, "a repository whose root is the model; download the folder and name it here")
    return found


def _is_of_hub(text: str) -> bool:
    return text.strip().startswith(("hf:", "https://", "http://"))


def parse_hub_name(text: str, expected: str) -> HubName:
    """Parse the name of a repository; raises InvalidRequestError, which says what is `expected` there."""
    bare = text.strip()
    if bare.startswith(("https://", "http://")):
        return _checked(text, expected, *_of_address(text, bare, expected))
    if not bare.startswith("hf:"):
        raise _bad_source(text, expected)
    rest, _, subfolder = bare.removeprefix("hf:").partition("#")
    if not rest.startswith("//"):
        repo_id, _, revision = rest.partition("@")
        return _checked(text, expected, repo_id.strip("/") if repo_id[:1] != "/" else repo_id, revision, subfolder)
    # As the hub's own file system writes it, where the folder follows the revision.
    words = rest.strip("/").split("/")
    words = words[1:] if words[0] == "models" and len(words) > 2 else words
    name, _, revision = "/".join(words[:2]).partition("@")
    return _checked(text, expected, name, unquote(revision), subfolder or "/".join(words[2:]))


def _of_address(text: str, bare: str, expected: str) -> tuple[str, str, str]:
    """Repository, revision and folder in the address of a page."""
    address = urlsplit(bare)
    if address.hostname not in HUB_HOSTS:
        raise _bad_source(text, f"{expected}, or a page of {HUB_HOSTS[0]}")
    words = [unquote(word) for word in address.path.split("/") if word]
    if words[:1] and words[0] in _OTHER_KINDS:
        raise _bad_source(text, f"the repository of a model, not one of {words[0]}")
    repo_id, page, revision = "/".join(words[:2]), "".join(words[2:3]), "".join(words[3:4])
    if page in _PAGES_OF_FILES:
        return repo_id, revision, "/".join(words[4:-1])
    if page and page not in _PAGES_OFHUB_FOLDERS:
        raise _bad_source(text, f"{expected}; /{page} is no page of a revision")
    return repo_id, revision, "/".join(words[4:])


def _checked(text: str, expected: str, repo_id: str, revision: str, subfolder: str) -> HubName:
    parts, revision, folder = repo_id.split("/"), revision.strip("/"), subfolder.strip("/")
    if len(parts) != 2 or not all(parts):
        raise _bad_source(text, expected)
    for part in parts:
        if not _PART.fullmatch(part) or ".." in part or "--" in part or part.endswith((".", "-", ".git")):
            letters = "letters, digits, '_', and single '.' and '-' inside"
            raise _bad_source(text, f"{expected}; {part!r} is no name on the hub, which has {letters}")
    if revision and (not HUB_REVISION.fullmatch(revision) or ".." in revision):
        raise _bad_source(text, f"{expected}; {revision!r} is no branch, tag or commit")
    if folder and (not HUB_FOLDER.fullmatch(folder) or ".." in folder):
        raise _bad_source(text, f"{expected}; {folder!r} is no folder of a repository")
    return HubName(repo_id, revision, folder)


def _bad_source(text: str, expected: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation("SOURCE", f"found {text!r}, expected {expected}")])
