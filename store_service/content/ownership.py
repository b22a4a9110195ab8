"""Decides whether a catalog and a place of blobs belong together, before anything in either is changed.

A store removes what its catalog does not refer to, so a catalog that is new, lost, restored from an early copy or
another's would take all blobs for garbage. `require_owned` is asked first, about every place where blobs lie.
"""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from hotslot.content_files import make_directory, sync_directory
from hotslot.errors import StoreUnavailableError
from store_service.catalog.records import CatalogState
from store_service.content.keys import BlobKey
from store_service.content.objects import ObjectBlobs

UNOWNED = "unowned"
"""Name that `adopt_blobs` has for blobs that say of no catalog that they are its own."""
_MARK = ".owner-"


NO_CATALOG = CatalogState("", 0)


@dataclass(frozen=True, slots=True)
class Place:
    """Blobs as they were found, and the catalogs that they say they belong to."""

    name: str
    """Folder or URL, for people."""
    setting: str
    """The setting that names it."""
    owners: frozenset[str]
    blobs: Set[BlobKey]
    last_num_changes: int = 0
    """Changes of the owner when it was last seen here."""


def require_owned(place: Place, catalog: CatalogState, known: Set[BlobKey], adopt: str) -> None:
    """Return where the catalog may keep, and in time remove, what lies there; raises StoreUnavailableError.

    `known` are the blobs that its versions refer to; `adopt` is what the setting `adopt_blobs` says.
    """
    strange = objection(place, catalog, known)
    if strange is None:
        return
    token = min(place.owners - {catalog.id}, default=catalog.id if place.owners else UNOWNED)
    if adopt == token:
        return
    raise StoreUnavailableError(
        f"{strange}; nothing was removed. Bring back the catalog that belongs to these blobs (`hotslot "
        f"restore`, or the database's own backup), or have {place.setting} name another place; to keep them with this "
        f"catalog instead, start once with --adopt-blobs {token} (HOTSLOT_ADOPT_BLOBS): those that no version "
        "refers to then go when unreferenced_grace_s is over"
    )


def objection(place: Place, catalog: CatalogState, known: Set[BlobKey]) -> str | None:
    """Sentence that speaks against it; None where they belong together, or nothing lies there."""
    if not place.blobs:
        return None
    held = f"{place.name} holds {len(place.blobs)} blob{'s' * (len(place.blobs) != 1)}"
    num_known = len(place.blobs & known)
    others = ", ".join(sorted(place.owners - {catalog.id}))[:200]
    if not catalog.id:
        return f"{held}{f' of catalog {others}' if others else ''}, and there is no catalog"
    if others:
        return f"{held} of another catalog ({others}; this one is {catalog.id}, and knows {num_known} of them)"
    if num_known:
        return None
    if not place.owners:
        return f"{held}, and this catalog ({catalog.id}) knows none of them: it is new, or another's"
    if catalog.num_changes < place.last_num_changes:
        return (
            f"{held} of this catalog ({catalog.id}), which knows none of them: it is a copy from before they came "
            f"({catalog.num_changes} changes, {place.last_num_changes} when it was last here)"
        )
    return None


class FolderOwner:
    """The mark in a folder of blobs that says whose they are: an empty folder `.owner-<catalog's id>`.

    It is made by one system call, so that it is there whole or not at all, and moves with the folder that it lies in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self) -> frozenset[str]:
        """The ids of the catalogs that the folder says it belongs to."""
        if not self._folder.is_dir():
            return frozenset()
        return frozenset(path.name.removeprefix(_MARK) for path in self._folder.iterdir() if _is_mark(path))

    def write(self, catalog_id: str) -> None:
        """Make the folder this catalog's alone, durably."""
        if self.read() == {catalog_id}:
            return
        make_directory(self._folder / f"{_MARK}{catalog_id}")
        for path in list(self._folder.iterdir()):
            if _is_mark(path) and path.name != f"{_MARK}{catalog_id}":
                path.rmdir()
        sync_directory(self._folder)


def _is_mark(path: Path) -> bool:
    return path.name.startswith(_MARK) and path.is_dir()


class Ownership:
    """Catalog that a store's blobs were found to belong to when it started."""

    def __init__(self, data_dir: Path, catalog_id: str, folder: FolderOwner, objects: ObjectBlobs | None) -> None:
        self.data_dir = data_dir
        self._catalog_id = catalog_id
        self._folder = folder
        self._objects = objects

    def check(self, state: CatalogState) -> CatalogState:
        """The state again; raises StoreUnavailableError when the catalog or the blobs were exchanged meanwhile."""
        if state.id != self._catalog_id:
            raise StoreUnavailableError(
                f"the catalog was exchanged while the store ran ({self._catalog_id} before, {state.id} now); "
                "restart the store: until then nothing is removed"
            )
        if self._folder.read() != {self._catalog_id}:
            raise StoreUnavailableError(
                "the folder of blobs was exchanged while the store ran, or lost its mark; restart the store: until "
                "then nothing is removed"
            )
        if self._objects is not None and (found := self._objects.owner()) != self._catalog_id:
            raise StoreUnavailableError(
                f"the blobs at blob_url belong to another catalog now ({found}); restart the store: until then "
                "nothing is removed"
            )
        return state
