"""Source of checkpoints at URLs, with its options: light, so that a store without such imports loads no client."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hotslot.source_urls import ArchiveUrl, ObjectFolderUrl
from shared.outgoing_http import Network
from store_service.sources.access import SourceGrant
from store_service.sources.source import FixedCheckpoint, Source

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


def url_source(url: ObjectFolderUrl | ArchiveUrl, grant: SourceGrant, options: WebOptions, max_bytes: int) -> Source:
    """The source at a URL that a tenant was granted."""
    return UrlSource(url, grant, options, max_bytes)


class UrlSource:
    """A folder of object storage, or an archive of a web server."""

    is_remote = True

    def __init__(
        self, url: ObjectFolderUrl | ArchiveUrl, grant: SourceGrant, options: WebOptions, max_bytes: int
    ) -> None:
        self._url = url
        self._grant = grant
        self._options = options
        self._max_bytes = max_bytes

    @property
    def key(self) -> str:
        """The URL, with an archive's digest."""
        return str(self._url)

    def resolve(self) -> FixedCheckpoint:
        """Ask what is there now; see `Source.resolve`."""
        # The HTTP client takes a while to import, and a store without imports does not need it.
        from store_service.sources.remote.archive import resolve_archive
        from store_service.sources.remote.object_folder import resolve_objects

        if isinstance(self._url, ArchiveUrl):
            return resolve_archive(self._url, self._grant, self._options, self._max_bytes)
        return resolve_objects(self._url, self._grant, self._options, self._max_bytes)
