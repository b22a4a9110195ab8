"""Sources that this store can import from, and their limits."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from hotslot.ids import TenantId
from hotslot.source_urls import parse_source_url
from store_service.sources.access import NO_ACCESS, SourceAccess
from store_service.sources.directory import DirectorySource
from store_service.sources.hub.folder import HubFolder, HubOptions
from store_service.sources.hub.source import HubSource
from store_service.sources.remote.options import PUBLIC_WEB, WebOptions
from store_service.sources.remote.source import url_source
from store_service.sources.source import Source

_HUB_COMMIT = re.compile(r"hf:(?P<repo>[^@]+)@(?P<commit>[0-9a-f]{40})(/(?P<subfolder>.+))?")


@dataclass(frozen=True, slots=True)
class HubLocation:
    """A checkpoint in a Hugging Face repository."""

    repo_id: str
    revision: str
    subfolder: str


@dataclass(frozen=True, slots=True)
class FolderLocation:
    """A checkpoint in a folder of the store's machine."""

    path: str


@dataclass(frozen=True, slots=True)
class UrlLocation:
    """A checkpoint in a folder of object storage, or in an archive with this digest."""

    url: str
    digest: str


Location = HubLocation | FolderLocation | UrlLocation


def pinned_location(origin: str) -> HubLocation | None:
    """Location of a checkpoint that can be fetched again and is sure to be the same, from its version's origin."""
    found = _HUB_COMMIT.fullmatch(origin)
    return HubLocation(found["repo"], found["commit"], found["subfolder"] or "") if found else None


@dataclass(frozen=True)
class Sources:
    """Makes sources from where a request says the checkpoint is."""

    import_roots: tuple[Path, ...]
    max_bytes: int
    hub: HubOptions
    hub_token_tenants: tuple[str, ...]
    """Tenants for whom the hub's token is used: it opens repositories that are not public."""

    access: SourceAccess = NO_ACCESS
    """Object storage and web servers that tenants may import from."""
    web: WebOptions = PUBLIC_WEB

    def opened(self) -> "Sources":
        """These, once the file of their access was read; raises InvalidRequestError for one that cannot be."""
        self.access.open()
        return self

    def of(self, tenant: TenantId, location: Location) -> Source:
        """The source at a location.

        Raises InvalidRequestError when it is malformed, SourceForbiddenError for a URL that the tenant may not use, and
        StoreUnavailableError.
        """
        if isinstance(location, UrlLocation):
            url = parse_source_url(location.url, location.digest)
            return url_source(url, self.access.grant(tenant, url), self.web, self.max_bytes)
        if isinstance(location, FolderLocation):
            return DirectorySource(location.path, self.import_roots, self.max_bytes)
        hub = self.hub if tenant in self.hub_token_tenants else replace(self.hub, token="")
        return HubSource(HubFolder(location.repo_id, location.revision, location.subfolder, hub, self.max_bytes))
