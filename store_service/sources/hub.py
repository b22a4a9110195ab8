"""Checkpoints in Hugging Face repositories: where one is, and how this store talks to the hub."""

import re
from dataclasses import dataclass, field

from hotslot.errors import FieldViolation, InvalidRequestError
from store_service.sources.source import Content

_REPO_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")
_SUBFOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class HubOptions:
    """How this store talks to the hub."""

    endpoint: str = "https://huggingface.co"
    token: str = field(default="", repr=False)
    """Sent to the endpoint only, never to where it redirects, and in no message."""
    redirect_hosts: tuple[str, ...] = ("huggingface.co", "hf.co")
    """Hosts, with their subdomains, from which the endpoint may have files fetched."""
    timeout_s: float = 30.0
    """Without a byte."""
    backoff_s: float = 0.5
    """Before the second attempt; twice as long before each further one."""
    num_attempts: int = 4


class HubSource:
    """One folder of one repository at one revision."""

    def __init__(self, repo_id: str, revision: str, subfolder: str, options: HubOptions, max_bytes: int) -> None:
        problems = [
            FieldViolation(f"hub.{name}", f"found {value[:80]!r}, expected {expected}")
            for name, value, pattern, expected in (
                ("repo_id", repo_id, _REPO_ID, "org/name"),
                ("revision", revision or "main", _REVISION, "a branch, tag or commit"),
                ("subfolder", subfolder or "x", _SUBFOLDER, "a folder in the repository"),
            )
            if not pattern.fullmatch(value) or ".." in value
        ]
        if problems:
            raise InvalidRequestError(problems)
        self.repo_id = repo_id
        self.revision = revision
        self.prefix = f"{subfolder}/" if subfolder else ""
        self.options = options
        self.max_bytes = max_bytes

    @property
    def key(self) -> str:
        """Repository, revision and folder as they were named."""
        return f"hf:{self.repo_id}@{self.revision}/{self.prefix}"

    @property
    def is_remote(self) -> bool:
        """Resolving is a request to the hub."""
        return True

    def resolve(self) -> Content:
        """Ask for the commit that the revision stands for; see `Source.resolve`."""
        # The hub's library and its HTTP client take a while to import, and a store without imports needs neither.
        from store_service.sources.hub_commit import resolve_commit

        return resolve_commit(self)
