"""Folder of a Hugging Face repository, and how this store talks to the hub."""

import re
from dataclasses import dataclass, field

from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.sources import HUB_FOLDER, HUB_REVISION
from shared.outgoing_http import Network

_REPO_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True)
class HubOptions:
    """Options of this store's calls to the hub."""

    endpoint: str = "https://huggingface.co"
    token: str = field(default="", repr=False)
    """Sent to the endpoint only, never to where it redirects, and in no message."""
    redirect_hosts: tuple[str, ...] = ("huggingface.co", "hf.co")
    """Hosts, with their subdomains, from which the endpoint may have files fetched."""
    private_networks: tuple[Network, ...] = ()
    """Networks that are not public, and that requests may reach all the same."""
    timeout_s: float = 30.0
    """Without a byte."""
    backoff_s: float = 0.5
    """Before the second attempt; twice as long before each further one."""
    num_attempts: int = 4


@dataclass(frozen=True)
class HubFolder:
    """One folder of one repository at one revision; raises InvalidRequestError when a part is malformed."""

    repo_id: str
    revision: str
    """A branch, tag or commit; empty for the repository's main branch."""
    subfolder: str
    options: HubOptions
    max_bytes: int

    def __post_init__(self) -> None:
        problems = [
            FieldViolation(f"hub.{name}", f"found {value[:80]!r}, expected {expected}")
            for name, value, pattern, expected in (
                ("repo_id", self.repo_id, _REPO_ID, "org/name"),
                ("revision", self.revision or "main", HUB_REVISION, "a branch, tag or commit"),
                ("subfolder", self.subfolder or "x", HUB_FOLDER, "a folder in the repository"),
            )
            if not pattern.fullmatch(value) or ".." in value
        ]
        if problems:
            raise InvalidRequestError(problems)

    @property
    def prefix(self) -> str:
        """Beginning of the paths of the folder's files."""
        return f"{self.subfolder}/" if self.subfolder else ""

    @property
    def key(self) -> str:
        """Repository, revision and folder as people write them."""
        at = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo_id}{at}" + (f"#{self.subfolder}" if self.subfolder else "")
