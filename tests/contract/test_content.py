"""What every place of content must do: the store's disk, object storage, a cache of it, keys, and a worker's disk."""

import asyncio
import os
import random
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from hotslot.errors import QuotaExceededError
from hotslot.ids import Digest, digest_of
from tests.support.content_places import (
    TENANT,
    ContentPlace,
    KeyedPlace,
    StorePlace,
    WorkerDiskPlace,
    killed,
    nearly_full_disk,
)
from tests.support.object_storage import BUCKET, s3_server

SIZE = 20_000
BUDGET = 3 * SIZE + 100


def content(seed: int) -> bytes:
    return random.Random(seed).randbytes(SIZE)


def digest(seed: int) -> Digest:
    return digest_of(content(seed))


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    with s3_server() as variables, pytest.MonkeyPatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value)
        yield


PLACES: dict[str, Callable[[Path], ContentPlace]] = {
    "local": lambda folder: StorePlace(folder, None, 0),
    "remote": lambda folder: StorePlace(folder, f"s3://{BUCKET}/{folder.name}", 0, loses_disk=True),
    "remote folder": lambda folder: StorePlace(folder, f"file://{folder / 'objects'}", 0, loses_disk=True),
    "cached": lambda folder: StorePlace(folder, f"s3://{BUCKET}/{folder.name}", BUDGET),
    "keyed": lambda folder: KeyedPlace(folder, BUDGET),
    "worker's disk": lambda folder: WorkerDiskPlace(folder, BUDGET),
}


@pytest.fixture
async def place(request: pytest.FixtureRequest, s3: None, tmp_path: Path) -> AsyncIterator[ContentPlace]:
    opened = PLACES[request.param](tmp_path)
    yield opened
    await opened.close()


every = pytest.mark.parametrize("place", PLACES, indirect=True)
verifying = pytest.mark.parametrize("place", [name for name in PLACES if name != "keyed"], indirect=True)
streaming = pytest.mark.parametrize("place", ["local", "remote", "remote folder", "cached"], indirect=True)
bounded = pytest.mark.parametrize("place", ["cached", "keyed", "worker's disk"], indirect=True)


@every
async def test_what_was_written_is_read_now_and_by_the_next_process(place: ContentPlace) -> None:
    assert await place.get(digest(1), SIZE) is None
    assert await place.put(digest(1), content(1))
    assert await place.get(digest(1), SIZE) == content(1)
    again = place.reopened()
    assert await again.get(digest(1), SIZE) == content(1)
    assert again.staged() == []
    await again.close()


@every
async def test_what_is_removed_is_gone(place: ContentPlace) -> None:
    await place.put(digest(1), content(1))
    await place.put(digest(2), content(2))
    place.remove(digest(1))
    assert await place.get(digest(1), SIZE) is None
    assert await place.get(digest(2), SIZE) == content(2)


@every
@pytest.mark.parametrize("wrong", [content(2), content(1)[:-1], content(1) + b"x", b"x"], ids=len)
async def test_bytes_that_are_not_the_digests_are_never_given_out(place: ContentPlace, wrong: bytes) -> None:
    await place.put(digest(1), wrong)
    assert await place.get(digest(1), SIZE) is None
    assert place.staged() == []
    assert await place.put(digest(1), content(1))
    assert await place.get(digest(1), SIZE) == content(1)


@every
async def test_writers_of_the_same_at_the_same_time_leave_it_whole(place: ContentPlace) -> None:
    written = await asyncio.gather(*(place.put(digest(number % 2), content(number % 2)) for number in range(8)))
    assert any(written)
    for number in range(2):
        # A budget has room for three at once: the writers of one content may all be refused while the other's write.
        assert any(written[number::2]) or await place.put(digest(number), content(number))
        assert await place.get(digest(number), SIZE) == content(number)
    assert place.staged() == []


@every
async def test_what_a_killed_writer_left_is_not_content_and_goes(place: ContentPlace) -> None:
    await place.put(digest(1), content(1))
    done = await asyncio.to_thread(subprocess.run, killed(place.dying_writer()), timeout=60, check=False)
    assert done.returncode == -9
    assert len(place.staged()) == 1
    again = place.reopened()
    assert await again.put(digest(2), content(2))
    assert again.staged() == []
    for number in (1, 2):
        assert await again.get(digest(number), SIZE) == content(number)
    await again.close()


@every
async def test_a_full_disk_refuses_and_leaves_nothing(place: ContentPlace) -> None:
    with nearly_full_disk(SIZE // 2):
        assert not await place.put(digest(1), content(1))
    assert place.staged() == []
    assert await place.get(digest(1), SIZE) is None
    assert await place.put(digest(1), content(1))
    assert await place.get(digest(1), SIZE) == content(1)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flip": lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:],
    "flip at the end": lambda data: data[:-1] + bytes([data[-1] ^ 128]),
    "cut": lambda data: data[:-1],
    "grow": lambda data: data + b"x",
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("place", ["local", "remote folder", "cached", "worker's disk"], indirect=True)
async def test_damage_is_found_and_repaired_where_it_can_be(place: ContentPlace, damage: str) -> None:
    await place.put(digest(1), content(1))
    path = place.file(digest(1))
    path.chmod(0o644)
    path.write_bytes(DAMAGES[damage](content(1)))
    for _ in range(2):
        assert await place.get(digest(1), SIZE) == (content(1) if place.repairs else None)
    assert await place.put(digest(1), content(1)), "it is healed by being written again"
    assert await place.get(digest(1), SIZE) == content(1)


@streaming
@pytest.mark.parametrize(
    ("offset", "limit"), [(0, 1), (0, SIZE), (1, 0), (700, 300), (SIZE - 1, 0), (SIZE, 0), (5, 2**40)]
)
async def test_ranges_are_read(place: StorePlace, offset: int, limit: int) -> None:
    await place.put(digest(1), content(1))
    end = offset + limit if limit else SIZE
    assert await place.get_range(digest(1), offset, limit) == content(1)[offset:end]


@bounded
async def test_the_budget_holds_and_the_least_recently_used_goes(place: ContentPlace) -> None:
    for number in range(3):
        await place.put(digest(number), content(number))
        if place.file(digest(number)).exists():
            os.utime(place.file(digest(number)), (number + 1, number + 1))
    place = place.reopened()
    assert await place.get(digest(0), SIZE) == content(0)
    assert await place.put(digest(3), content(3))
    assert place.used_bytes() <= BUDGET
    there = [place.file(digest(number)).exists() for number in range(4)]
    assert there == [True, False, True, True]
    found = await place.get(digest(1), SIZE)
    assert found == (content(1) if place.repairs else None)
    assert place.used_bytes() <= BUDGET
    await place.close()


@bounded
async def test_what_is_larger_than_the_budget_is_refused_and_nothing_goes_for_it(place: ContentPlace) -> None:
    await place.put(digest(1), content(1))
    large = content(2) * 4
    assert not await place.put(digest_of(large), large)
    assert place.staged() == []
    assert place.file(digest(1)).exists()


@pytest.mark.parametrize("place", ["cached"], indirect=True)
async def test_what_is_being_read_is_not_evicted(place: StorePlace) -> None:
    for number in range(3):
        await place.put(digest(number), content(number))
    files = [place.blobs.open(TENANT, digest(number))[0] for number in range(3)]
    with pytest.raises(QuotaExceededError):
        place.blobs.reserve(SIZE)
    files[1].close()
    assert await place.put(digest(3), content(3))
    assert [place.file(digest(number)).exists() for number in range(4)] == [True, False, True, True]
    for file in files:
        file.close()


@streaming
async def test_a_reader_that_began_finishes_although_the_blob_is_removed(place: StorePlace) -> None:
    await place.put(digest(1), content(1))
    async with aclosing(place.reader.read(TENANT, digest(1), 0, 0, lambda data, offset, size_bytes: data)) as chunks:
        first = await anext(chunks)
        place.remove(digest(1))
        assert first + b"".join([chunk async for chunk in chunks]) == content(1)
