"""Sources that this store can import from, and their limits."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from hotslot.ids import TenantId
from store_service.sources.directory import DirectorySource
from store_service.sources.hub.folder import HubFolder, HubOptions
from store_service.sources.hub.source import HubSource
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

    def of(self, tenant: TenantId, location: HubLocation | FolderLocation) -> Source:
        """The source at a location; raises InvalidRequestError when it is malformed."""
        if isinstance(location, FolderLocation):
            return DirectorySource(location.path, self.import_roots, self.max_bytes)
        hub = self.hub if tenant in self.hub_token_tenants else replace(self.hub, token="")
        return HubSource(HubFolder(location.repo_id, location.revision, location.subfolder, hub, self.max_bytes))
