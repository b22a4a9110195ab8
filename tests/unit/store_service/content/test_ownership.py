"""Catalogs, the blobs that they may keep, and the mark that says so."""

from pathlib import Path

import pytest

from hotslot.errors import StoreUnavailableError
from hotslot.ids import TenantId, digest_of
from store_service.catalog.records import CatalogState
from store_service.content.keys import BlobKey
from store_service.content.ownership import NO_CATALOG, UNOWNED, FolderOwner, Place, require_owned

OURS = CatalogState("ours", 9)
KEYS: list[BlobKey] = [(TenantId("acme"), digest_of(bytes([number]))) for number in range(3)]


def place(owners: set[str], num_blobs: int, last_num_changes: int = 0) -> Place:
    return Place("/data/blobs", "data_dir", frozenset(owners), set(KEYS[:num_blobs]), last_num_changes)


ALLOWED = {
    "nothing lies there": (place(set(), 0), OURS, 0),
    "nothing lies there, and it was another's": (place({"theirs"}, 0), OURS, 0),
    "nothing lies there, and there is no catalog": (place({"theirs"}, 0), NO_CATALOG, 0),
    "our own": (place({"ours"}, 3), OURS, 3),
    "our own, of which one is known": (place({"ours"}, 3), OURS, 1),
    "our own, all of it deleted": (place({"ours"}, 3, 9), OURS, 0),
    "from before there were marks": (place(set(), 3), OURS, 1),
}
REFUSED = {
    "no catalog": (place({"ours"}, 3), NO_CATALOG, 0, "ours"),
    "no catalog, from before there were marks": (place(set(), 3), NO_CATALOG, 0, UNOWNED),
    "a new catalog": (place({"theirs"}, 1), CatalogState("new", 0), 0, "theirs"),
    "another's, some of whose blobs we know": (place({"theirs"}, 3), OURS, 2, "theirs"),
    "two folders in one": (place({"ours", "theirs"}, 3), OURS, 2, "theirs"),
    "from before there were marks, and not ours": (place(set(), 3), OURS, 0, UNOWNED),
    "our own, and a catalog from before it": (place({"ours"}, 3, 10), OURS, 0, "ours"),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_a_catalog_keeps_what_is_its_own(case: str) -> None:
    where, catalog, num_known = ALLOWED[case]
    require_owned(where, catalog, set(KEYS[:num_known]), "")


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_known_to_be_its_own_is_refused_until_it_is_named(case: str) -> None:
    where, catalog, num_known, token = REFUSED[case]
    known = set(KEYS[:num_known])
    for adopt in ("", "other", "true"):
        with pytest.raises(StoreUnavailableError) as caught:
            require_owned(where, catalog, known, adopt)
        message = caught.value.message
        assert "\n" not in message
        for part in ("/data/blobs", f"{len(where.blobs)} blob", "data_dir", f"--adopt-blobs {token}"):
            assert part in message
    require_owned(where, catalog, known, token)


def test_a_folder_carries_its_mark(tmp_path: Path) -> None:
    owner = FolderOwner(tmp_path / "blobs")
    assert owner.read() == frozenset()
    owner.write("one")
    owner.write("one")
    assert owner.read() == {"one"}
    (tmp_path / "blobs").rename(tmp_path / "moved")
    moved = FolderOwner(tmp_path / "moved")
    assert moved.read() == {"one"}
    moved.write("two")
    assert moved.read() == {"two"}
