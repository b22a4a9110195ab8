"""Source of checkpoints at URLs: light, so that a store without such imports loads no client."""

from hotslot.source_urls import ArchiveUrl, ObjectFolderUrl
from store_service.sources.access import SourceGrant
from store_service.sources.remote.options import WebOptions
from store_service.sources.source import FixedCheckpoint, Source


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
