"""Catalogs that are lost, new, old or another's: the store refuses to start, and nothing that lies there is touched."""

import asyncio
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hotslot.errors import StoreUnavailableError
from hotslot.formats.file_names import CATALOG_FILE
from hotslot.ids import digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from tests.support.checkpoints import adapter
from tests.support.store import StoreClient, open_store
from tests.support.waiting import until

DAY_S = 86_400
CATALOG_FILES = (CATALOG_FILE, f"{CATALOG_FILE}-wal", f"{CATALOG_FILE}-shm")
QUICK = {"collect_every_s": 0.01, "delete_grace_s": 0}


async def fill(data: Path, *seeds: int, **settings: object) -> None:
    async with open_store(data, **settings) as store:
        await store.register()
        for seed in seeds:
            await store.push(adapter(seed=seed), f"bot-{seed}")


async def served(data: Path, *seeds: int, **settings: object) -> None:
    """Read what was pushed bit for bit."""
    async with open_store(data, **settings) as store:
        for seed in seeds:
            await read(store, f"bot-{seed}")


async def read(store: StoreClient, reference: str) -> None:
    digest = (await store.resolve(reference)).manifest.weights_digest
    assert digest_of(await store.read(digest)) == digest


def contents(*folders: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (*CATALOG_FILES, "lock", "collecting")
    }


def take_catalog(data: Path, aside: Path) -> None:
    aside.mkdir(exist_ok=True)
    for name in CATALOG_FILES:
        if (data / name).exists():
            shutil.move(data / name, aside / name)


def bring_catalog(aside: Path, data: Path) -> None:
    for name in CATALOG_FILES:
        (data / name).unlink(missing_ok=True)
        if (aside / name).exists():
            shutil.copy(aside / name, data / name)


def lose(data: Path, tmp_path: Path) -> None:
    """The catalog's file is gone."""


def empty(data: Path, tmp_path: Path) -> None:
    (data / CATALOG_FILE).touch()


def exchange(data: Path, tmp_path: Path) -> None:
    bring_catalog(tmp_path / "other", data)


def forget(data: Path, tmp_path: Path) -> None:
    """The same catalog, as it was before there was a version."""
    bring_catalog(tmp_path / "early", data)


def make_anew(data: Path, tmp_path: Path) -> None:
    bring_catalog(tmp_path / "new", data)


LOSSES: list[Callable[[Path, Path], None]] = [lose, empty, exchange, forget, make_anew]


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "from before there were marks"])
@pytest.mark.parametrize("harm", LOSSES)
async def test_a_store_whose_catalog_is_not_that_of_its_blobs_does_not_start(
    harm: Callable[[Path, Path], None], marked: bool, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    await fill(data)
    shutil.copytree(data, tmp_path / "early")
    await fill(data, 1, 2)
    await fill(tmp_path / "other", 3)
    await fill(tmp_path / "new")
    if not marked:
        for mark in (data / "blobs").glob(".owner-*"):
            mark.rmdir()
    take_catalog(data, tmp_path / "aside")
    harm(data, tmp_path)
    (data / "uploads" / "default" / "stale.part").write_bytes(b"x")
    for path in data.rglob("*"):
        os.utime(path, (0, 0))
    before = contents(data)
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match=r"2 blobs.*--adopt-blobs"):
            await served(data, unreferenced_grace_s=0, upload_ttl_s=0)
        assert contents(data) == before
    bring_catalog(tmp_path / "aside", data)
    await served(data, 1, 2)


async def test_a_journal_without_its_catalog_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / f"{CATALOG_FILE}-wal").write_bytes(b"what was acknowledged last")
    with pytest.raises(StoreUnavailableError, match="journal"):
        await served(tmp_path)
    assert (tmp_path / f"{CATALOG_FILE}-wal").read_bytes() == b"what was acknowledged last"
    assert not (tmp_path / CATALOG_FILE).exists()


async def test_a_folder_of_another_store_is_not_taken_over(tmp_path: Path) -> None:
    await fill(tmp_path / "one", 1, 2)
    await fill(tmp_path / "two", 1, 3)
    shutil.rmtree(tmp_path / "one" / "blobs")
    shutil.copytree(tmp_path / "two" / "blobs", tmp_path / "one" / "blobs")
    before = contents(tmp_path / "one")
    with pytest.raises(StoreUnavailableError, match="another catalog"):
        await served(tmp_path / "one", unreferenced_grace_s=0)
    assert contents(tmp_path / "one") == before


async def test_a_folder_that_the_catalog_knows_is_adopted_and_marked(tmp_path: Path) -> None:
    await fill(tmp_path, 1, 2)
    (mark,) = (tmp_path / "blobs").glob(".owner-*")
    mark.rmdir()
    await served(tmp_path, 1, 2)
    assert mark.is_dir()


async def test_blobs_that_are_taken_over_by_name_wait_like_any_others(tmp_path: Path) -> None:
    await fill(tmp_path, 1)
    (mark,) = (tmp_path / "blobs").glob(".owner-*")
    take_catalog(tmp_path, tmp_path / "aside")
    before = contents(tmp_path / "blobs")
    adopt = mark.name.removeprefix(".owner-")
    async with open_store(tmp_path, adopt_blobs=adopt, **QUICK) as store:
        assert await store.names() == []
        await store.register()
        await store.push(adapter(seed=2), "bot-2")
    assert not mark.exists()
    assert before.items() <= contents(tmp_path / "blobs").items()
    await served(tmp_path, 2)


async def test_object_storage_without_an_owner_is_not_taken_over_by_a_new_catalog(tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'objects'}"
    await fill(tmp_path / "data", 1, blob_url=url)
    (tmp_path / "objects" / "owner").unlink()
    before = contents(tmp_path / "objects")
    for other in ("new", "data-without-catalog"):
        with pytest.raises(StoreUnavailableError, match=r"1 blob.*--adopt-blobs unowned"):
            await served(tmp_path / other, blob_url=url, unreferenced_grace_s=0)
        assert contents(tmp_path / "objects") == before
        assert not (tmp_path / other / CATALOG_FILE).exists()
    await served(tmp_path / "data", 1, blob_url=url)
    assert (tmp_path / "objects" / "owner").is_file()


async def test_objects_of_another_catalog_are_taken_over_by_name_only(tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'objects'}"
    await fill(tmp_path / "data", 1, blob_url=url)
    owner = (tmp_path / "objects" / "owner").read_text()
    for adopt in ("", "unowned", "0" * 32):
        with pytest.raises(StoreUnavailableError, match=f"--adopt-blobs {owner}"):
            await served(tmp_path / "new", blob_url=url, adopt_blobs=adopt)
    before = contents(tmp_path / "objects" / "blobs")
    await fill(tmp_path / "new", 2, blob_url=url, adopt_blobs=owner)
    assert before.items() <= contents(tmp_path / "objects" / "blobs").items()
    await served(tmp_path / "new", 2, blob_url=url)
    with pytest.raises(StoreUnavailableError, match="another catalog"):
        await served(tmp_path / "data", 1, blob_url=url)


async def test_what_waits_in_object_storage_is_counted_there_by_stores_that_lose_their_disks(tmp_path: Path) -> None:
    url, catalog = f"file://{tmp_path / 'objects'}", f"sqlite:///{tmp_path / 'catalog.sqlite3'}"
    settings = {**QUICK, "unreferenced_grace_s": 0.5, "blob_url": url, "catalog_url": catalog}

    def num_objects() -> int:
        return len(contents(tmp_path / "objects" / "blobs"))

    await fill(tmp_path / "data", 1, 2, **settings)
    async with open_store(tmp_path / "data", **settings) as store:
        await store.call("DeleteAdapter", pb.DeleteAdapterRequest(name="bot-1"))
    num_lives = 0
    while num_objects() == 2:
        shutil.rmtree(tmp_path / "data")
        async with open_store(tmp_path / "data", **settings):
            await asyncio.sleep(0.2)
        num_lives += 1
    assert num_lives > 1
    await served(tmp_path / "data", 2, **settings)


async def test_an_older_copy_of_the_catalog_costs_nothing_for_the_whole_grace(tmp_path: Path) -> None:
    data = tmp_path / "data"
    await fill(data, 1)
    shutil.copy(data / CATALOG_FILE, tmp_path / "older")
    await fill(data, 2)
    before = contents(data / "blobs")
    (tmp_path / "older").replace(data / CATALOG_FILE)
    for path in data.rglob("*"):
        os.utime(path, (0, 0))
    for _ in range(3):
        await served(data, 1, collect_every_s=0.01)
    assert contents(data / "blobs") == before


async def test_a_clock_that_jumps_and_restarts_make_nothing_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**QUICK, "unreferenced_grace_s": DAY_S}
    await fill(tmp_path, 1, 2)
    async with open_store(tmp_path, **settings) as store:
        await store.call("DeleteAdapter", pb.DeleteAdapterRequest(name="bot-1"))
        await until(lambda: "sha256" in (tmp_path / "waiting.json").read_text().partition("\n")[2])
    before = contents(tmp_path / "blobs", tmp_path / "uploads")
    assert len(before) > 2
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + 1000 * DAY_S)
    for _ in range(3):
        await served(tmp_path, 2, **settings)
    assert contents(tmp_path / "blobs", tmp_path / "uploads") == before


async def test_what_has_waited_long_enough_goes_although_the_store_was_started_anew(tmp_path: Path) -> None:
    settings = {**QUICK, "unreferenced_grace_s": 0.2}
    await fill(tmp_path, 1, 2)
    async with open_store(tmp_path, **settings) as store:
        await store.call("DeleteAdapter", pb.DeleteAdapterRequest(name="bot-1"))
    async with open_store(tmp_path, **settings) as store:
        await until(lambda: sum(path.is_file() for path in (tmp_path / "blobs").rglob("*")) == 1)
        await read(store, "bot-2")


@pytest.mark.parametrize("what", ["catalog", "blobs"])
async def test_nothing_is_removed_once_catalog_or_blobs_were_exchanged_under_a_running_store(
    what: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    await fill(tmp_path / "other", 3)
    await fill(data, 1, 2)
    async with open_store(data, collect_every_s=0.01, unreferenced_grace_s=0) as store:
        await read(store, "bot-1")
        if what == "catalog":
            with sqlite3.connect(data / CATALOG_FILE) as connection:
                connection.execute("UPDATE catalog_identity SET id = 'another'")
                connection.execute("DELETE FROM versions")
        else:
            (data / "blobs").rename(tmp_path / "aside")
            shutil.copytree(tmp_path / "other" / "blobs", data / "blobs")
            with sqlite3.connect(data / CATALOG_FILE) as connection:
                connection.execute("DELETE FROM versions")
        before = contents(data / "blobs")
        for _ in range(60):
            assert contents(data / "blobs") == before
            await asyncio.sleep(0.01)
