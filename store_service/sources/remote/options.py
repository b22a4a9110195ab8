"""Options of calls to object storage and web servers, and addresses as a source hands them out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.outgoing_http import Network

AddressOf = Callable[[str], tuple[str, Mapping[str, str]]]
"""Address to ask for with a method, which may be a secret, and headers that are for its host alone."""


@dataclass(frozen=True)
class WebOptions:
    """Options of this store's calls to object storage and web servers."""

    private_networks: tuple[Network, ...] = ()
    """Networks that are not public, and that requests may reach all the same."""
    ca_file: Path | None = None
    """Certificates that servers' may lead to, beside those that are known publicly."""
    timeout_s: float = 30.0
    """Without a byte."""
    backoff_s: float = 0.5
    """Before the second attempt; twice as long before each further one."""
    num_attempts: int = 4
    """In a row, without a byte of progress."""


PUBLIC_WEB = WebOptions()
