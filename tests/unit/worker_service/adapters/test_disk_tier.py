"""The disk tier: saves reads of the store, never exceeds its budget, is never believed and never needed."""

import asyncio
import errno
import fcntl
import os
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hotslot.errors import StoreUnavailableError
from hotslot.ids import DEFAULT_TENANT, Digest, TenantId, digest_of
from worker_service.adapters.disk_files import DiskFiles
from worker_service.adapters.disk_tier import DiskOptions, DiskTier, open_disk_tier

BLOB_BYTES = 1_000
BUDGET = 3_500


def blob(seed: int, size_bytes: int = BLOB_BYTES) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def digest(seed: int) -> Digest:
    return digest_of(blob(seed))


@dataclass
class Source:
    """The store: has every blob, unless it is away."""

    blobs: dict[Digest, bytes] = field(default_factory=lambda: {digest(seed): blob(seed) for seed in range(10)})
    reads: list[Digest] = field(default_factory=list)
    is_away: bool = False

    async def read_blob(self, tenant: TenantId, digest: Digest, size_bytes: int) -> bytes:
        self.reads.append(digest)
        if self.is_away:
            raise StoreUnavailableError("away")
        return self.blobs[digest]


def tier(folder: Path, source: Source, budget: int = BUDGET) -> DiskTier:
    opened = open_disk_tier(DiskOptions(folder, budget), source)
    assert opened is not None
    return opened


async def read(tier: DiskTier, seed: int) -> bytes:
    data = bytes(await tier.read_blob(DEFAULT_TENANT, digest(seed), BLOB_BYTES))
    await tier.settled()
    return data


def blobs_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def used_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


async def test_the_second_read_needs_no_store_and_neither_does_the_next_start(tmp_path: Path) -> None:
    source = Source()
    first = tier(tmp_path, source)
    assert await read(first, 1) == blob(1)
    source.is_away = True
    assert await read(first, 1) == blob(1)
    restarted = tier(tmp_path, source)
    assert restarted.has(DEFAULT_TENANT, digest(1))
    assert await read(restarted, 1) == blob(1)
    assert source.reads == [digest(1)]


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "empty"])
async def test_a_damaged_blob_is_dropped_and_fetched_again(tmp_path: Path, damage: str) -> None:
    source = Source()
    disk = tier(tmp_path, source)
    await read(disk, 1)
    path = tmp_path / digest(1).removeprefix("sha256:")
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    damaged: dict[str, bytes] = {
        "flip": bytes(data),
        "cut": blob(1)[:-1],
        "grow": blob(1) + b"x",
        "empty": b"",
    }
    path.write_bytes(damaged[damage])
    assert DiskFiles(tmp_path, BUDGET).read(digest(1), BLOB_BYTES) is None
    assert not blobs_in(tmp_path), "it is never looked at again"
    path.write_bytes(data)
    assert await read(disk, 1) == blob(1)
    assert path.read_bytes() == blob(1)
    assert len(source.reads) == 2


async def test_the_least_recently_used_goes_first_and_the_budget_holds(tmp_path: Path) -> None:
    source = Source()
    disk = tier(tmp_path, source)
    for seed in range(3):
        await read(disk, seed)
        os.utime(tmp_path / digest(seed).removeprefix("sha256:"), (seed, seed))
    await read(disk, 0)
    await read(disk, 3)
    assert blobs_in(tmp_path) == {digest(seed).removeprefix("sha256:") for seed in (0, 2, 3)}
    assert not disk.has(DEFAULT_TENANT, digest(1))
    assert used_bytes(tmp_path) <= BUDGET


async def test_what_is_larger_than_the_budget_is_served_and_not_kept(tmp_path: Path) -> None:
    disk = tier(tmp_path, Source(), budget=BLOB_BYTES - 1)
    assert await read(disk, 1) == blob(1)
    assert not blobs_in(tmp_path)


def test_workers_that_share_a_folder_keep_its_budget_and_never_read_anything_else(tmp_path: Path) -> None:
    wrong: list[object] = []
    largest = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.is_set():
            sizes = []
            for path in tmp_path.iterdir():
                try:
                    sizes.append(path.stat().st_size)
                except FileNotFoundError:
                    continue
            largest = max(largest, sum(sizes))

    def work(seed: int) -> None:
        files, chance = DiskFiles(tmp_path, BUDGET), random.Random(seed)
        for _ in range(60):
            wanted = chance.randrange(10)
            found = files.read(digest(wanted), BLOB_BYTES)
            if found is None:
                files.write(digest(wanted), blob(wanted))
            elif bytes(found) != blob(wanted):
                wrong.append(wanted)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(4) as executor:
            list(executor.map(work, range(4)))
    finally:
        done.set()
        watcher.join()
    assert not wrong
    assert 0 < used_bytes(tmp_path) <= BUDGET
    # A file that moved from a stage to its name while the watcher listed the folder may have counted twice.
    assert largest <= BUDGET + 4 * BLOB_BYTES
    assert not list(tmp_path.glob(".stage-*"))


def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    files = DiskFiles(tmp_path, BUDGET)
    (tmp_path / ".stage-dead").write_bytes(blob(0))
    (tmp_path / ".stage-live").write_bytes(blob(0, 3_000))
    (tmp_path / "mine.txt").write_text("not a blob")
    with (tmp_path / ".stage-live").open("rb") as live:
        fcntl.flock(live, fcntl.LOCK_EX)
        assert not files.write(digest(1), blob(1)), "what is being written has its room"
        assert {path.name for path in tmp_path.glob(".stage-*")} == {".stage-live"}
    assert files.write(digest(1), blob(1))
    assert not list(tmp_path.glob(".stage-*"))
    assert (tmp_path / "mine.txt").exists()


async def test_a_full_disk_costs_only_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    disk = tier(tmp_path, Source())
    monkeypatch.setattr(os, "posix_fallocate", no_space)
    assert await read(disk, 1) == blob(1)
    assert used_bytes(tmp_path) == 0
    monkeypatch.undo()
    assert await read(disk, 1) == blob(1)
    assert disk.has(DEFAULT_TENANT, digest(1))


def test_a_folder_that_cannot_be_used_leaves_the_store_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert open_disk_tier(DiskOptions(tmp_path / "file" / "cache", BUDGET), Source()) is None


async def test_a_folder_that_vanishes_later_costs_only_the_copies(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    disk = tier(folder, Source())
    await read(disk, 1)
    shutil.rmtree(folder)
    for seed in (1, 2):
        assert await read(disk, seed) == blob(seed)


async def test_errors_of_the_store_come_through_and_nothing_is_kept(tmp_path: Path) -> None:
    disk = tier(tmp_path, Source(is_away=True))
    with pytest.raises(StoreUnavailableError):
        await read(disk, 1)
    assert not blobs_in(tmp_path)


async def test_a_dropped_blob_is_gone_even_while_it_is_being_written(tmp_path: Path) -> None:
    disk = tier(tmp_path, Source())
    await disk.read_blob(DEFAULT_TENANT, digest(1), BLOB_BYTES)
    await asyncio.gather(disk.drop(DEFAULT_TENANT, digest(1)))
    assert not blobs_in(tmp_path)
    assert not disk.has(DEFAULT_TENANT, digest(1))
