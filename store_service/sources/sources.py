"""Which sources this store can import from, and with which limits."""

from dataclasses import dataclass
from pathlib import Path

from shared.errors import NotImplementedYetError
from store_service.sources.directory import DirectorySource
from store_service.sources.source import Source


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


@dataclass(frozen=True)
class Sources:
    """Makes sources from where a request says the checkpoint is."""

    import_roots: tuple[Path, ...]
    max_bytes: int

    def of(self, location: HubLocation | FolderLocation) -> Source:
        """Raises NotImplementedYetError for a source that this version does not have."""
        if isinstance(location, FolderLocation):
            return DirectorySource(location.path, self.import_roots, self.max_bytes)
        raise NotImplementedYetError(
            "ImportAdapter from the Hugging Face Hub; download the repository and push its folder, which"
        )
