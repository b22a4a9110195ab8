"""Source of checkpoints in Hugging Face repositories."""

from store_service.sources.hub.folder import HubFolder
from store_service.sources.source import FixedCheckpoint


class HubSource:
    """One folder of one repository at one revision."""

    def __init__(self, folder: HubFolder) -> None:
        self._folder = folder

    @property
    def key(self) -> str:
        """Repository, revision and folder as they were named."""
        return self._folder.key

    @property
    def is_remote(self) -> bool:
        """Resolving is a request to the hub."""
        return True

    def resolve(self) -> FixedCheckpoint:
        """Ask for the commit that the revision stands for; see `Source.resolve`."""
        # The hub's library and its HTTP client take a while to import, and a store without imports needs neither.
        from store_service.sources.hub.commit import resolve_commit

        return resolve_commit(self._folder)
