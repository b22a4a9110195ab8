"""The blob cache: its budget, its order, and what never leaves it."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hotslot.errors import BlobNotFoundError, QuotaExceededError, StoreUnavailableError
from hotslot.ids import Digest, TenantId, digest_of
from store_service.content.index import Retention
from store_service.content.keys import BlobKey
from store_service.content.leases import Leases
from store_service.content.objects import ObjectBlobs
from store_service.content.store import ContentStore
from tests.support.blob_cache import cached_blobs

ACME = TenantId("acme")
SIZE = 1000
SOURCED = Retention(is_pinned=False, has_source=True)


def blob(number: int) -> bytes:
    return bytes([number]) * SIZE


def key(number: int) -> BlobKey:
    return ACME, digest_of(blob(number))


def publish(blobs: ContentStore, number: int) -> BlobKey:
    stage = blobs.writer(ACME)
    try:
        stage.reserve(SIZE)
        stage.write(blob(number))
        stage.publish(key(number)[1], SIZE)
    finally:
        stage.close()
    return key(number)


def objects_in(folder: Path) -> ObjectBlobs:
    return ObjectBlobs(f"file://{folder / 'objects'}")


def use(blobs: ContentStore, number: int, at_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("store_service.content.index.time.time", lambda: at_s)
        blobs.open(*key(number))[0].close()


def present(blobs: ContentStore, *numbers: int) -> list[bool]:
    return [blobs.contains(*key(number)) for number in numbers]


def test_the_least_recently_used_blob_leaves_also_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retention = {key(number): SOURCED for number in range(4)}
    blobs = cached_blobs(tmp_path, budget_bytes=3 * SIZE, retention=retention)
    for number in range(3):
        publish(blobs, number)
    for number, at_s in ((0, 3_000_000_000.0), (1, 1_000_000_000.0), (2, 2_000_000_000.0)):
        use(blobs, number, at_s, monkeypatch)
    blobs.save_use_times()
    blobs = cached_blobs(tmp_path, budget_bytes=3 * SIZE, retention=retention)
    publish(blobs, 3)
    assert present(blobs, 0, 1, 2, 3) == [True, False, True, True]
    with pytest.raises(BlobNotFoundError):
        blobs.open(*key(1))


@pytest.mark.parametrize(
    "retention",
    [
        {},
        {key(0): Retention(is_pinned=True, has_source=True)},
        {key(0): Retention(is_pinned=False, has_source=False)},
    ],
    ids=["unknown", "pinned", "only copy"],
)
def test_without_anything_to_evict_a_publication_is_refused_before_it_is_written(
    tmp_path: Path, retention: dict[BlobKey, Retention]
) -> None:
    blobs = cached_blobs(tmp_path, budget_bytes=SIZE + 10, retention=retention)
    publish(blobs, 0)
    stage = blobs.writer(ACME)
    with pytest.raises(QuotaExceededError, match="blob_cache_bytes") as caught:
        stage.reserve(SIZE)
    assert caught.value.subject == "blob_cache_bytes"
    assert [path.stat().st_size for path in (tmp_path / "stages").iterdir()] == [0]
    stage.close()
    assert present(blobs, 0) == [True]


def test_nothing_is_evicted_when_that_would_not_be_enough(tmp_path: Path) -> None:
    blobs = cached_blobs(tmp_path, budget_bytes=2 * SIZE, retention={key(0): SOURCED})
    publish(blobs, 0)
    publish(blobs, 1)
    with pytest.raises(QuotaExceededError):
        blobs.writer(ACME).reserve(2 * SIZE)
    assert present(blobs, 0, 1) == [True, True]


@pytest.mark.parametrize("how", ["open", "held", "resolved"])
def test_a_leased_blob_stays_until_its_lease_ends(tmp_path: Path, how: str) -> None:
    now_s = 0.0
    leases = Leases(60.0, lambda: now_s)
    blobs = cached_blobs(tmp_path, budget_bytes=SIZE, retention={key(0): SOURCED}, leases=leases)
    publish(blobs, 0)
    file = blobs.open(*key(0))[0] if how == "open" else None
    if how == "held":
        leases.take(key(0))
    elif how == "resolved":
        blobs.keep(*key(0))
    with pytest.raises(QuotaExceededError):
        publish(blobs, 1)
    if file is not None:
        file.close()
        file.close()
    elif how == "held":
        leases.give_back(key(0))
    else:
        now_s = 61.0
    publish(blobs, 1)
    assert present(blobs, 0, 1) == [False, True]


def test_bytes_being_written_count(tmp_path: Path) -> None:
    blobs = cached_blobs(tmp_path, budget_bytes=2 * SIZE)
    first = blobs.writer(ACME)
    first.reserve(2 * SIZE)
    with pytest.raises(QuotaExceededError):
        publish(blobs, 0)
    first.close()
    publish(blobs, 0)
    assert blobs.index.used_bytes() == SIZE


def test_a_smaller_budget_is_met_after_a_restart(tmp_path: Path) -> None:
    blobs = cached_blobs(tmp_path, objects_in(tmp_path))
    for number in range(4):
        publish(blobs, number)
    blobs = cached_blobs(tmp_path, objects_in(tmp_path), budget_bytes=2 * SIZE)
    assert blobs.trim()
    assert blobs.index.used_bytes() == 2 * SIZE
    assert set(blobs.digests()) == {key(number) for number in range(4)}


def test_a_blob_that_object_storage_lost_is_not_evicted_but_stored_again(tmp_path: Path) -> None:
    objects = objects_in(tmp_path)
    blobs = cached_blobs(tmp_path, objects, budget_bytes=2 * SIZE)
    publish(blobs, 0)
    publish(blobs, 1)
    objects.delete(key(0))
    publish(blobs, 2)
    assert present(blobs, 0, 1, 2) == [True, False, True]
    assert blobs.store_missing_objects() == 1
    assert objects.size_bytes(key(0)) == SIZE


def test_what_was_published_before_there_was_object_storage_is_stored_unless_it_is_rotten(tmp_path: Path) -> None:
    blobs = cached_blobs(tmp_path)
    publish(blobs, 0)
    publish(blobs, 1)
    flip_a_bit(tmp_path, key(1)[1])
    objects = objects_in(tmp_path)
    assert cached_blobs(tmp_path, objects).store_missing_objects() == 1
    assert objects.keys() == {key(0)}


def flip_a_bit(folder: Path, digest: Digest) -> None:
    (path,) = (folder / "blobs").rglob(digest.removeprefix("sha256:"))
    path.chmod(0o644)
    path.write_bytes(b"?" + path.read_bytes()[1:])


def test_a_blob_is_not_published_when_object_storage_is_away(tmp_path: Path) -> None:
    objects = objects_in(tmp_path)
    blobs = cached_blobs(tmp_path, objects)
    (tmp_path / "objects" / "blobs").write_bytes(b"in the way of a folder")
    with pytest.raises(StoreUnavailableError, match="object storage"):
        publish(blobs, 0)
    assert blobs.index.reserved_bytes() == 0
    (tmp_path / "objects" / "blobs").unlink()
    assert objects.keys() == set()
    publish(blobs, 0)
    assert objects.keys() == {key(0)}


def test_object_storage_belongs_to_one_catalog(tmp_path: Path) -> None:
    objects_in(tmp_path).claim("one")
    objects_in(tmp_path).claim("one")
    with pytest.raises(StoreUnavailableError, match="another catalog"):
        objects_in(tmp_path).claim("two")


@pytest.mark.parametrize("url", ["ftp://host/path", "s3://", "memory:///"])
def test_a_url_of_no_use_is_one_clear_error(url: str) -> None:
    with pytest.raises(StoreUnavailableError):
        ObjectBlobs(url)


def test_a_file_that_was_replaced_is_not_put_aside(tmp_path: Path) -> None:
    blobs = cached_blobs(tmp_path)
    publish(blobs, 0)
    flip_a_bit(tmp_path, key(0)[1])
    with blobs.open_unused(key(0)) as rotten:
        publish(blobs, 0)
        assert not blobs.quarantine(key(0), rotten)
    assert present(blobs, 0) == [True]
    with blobs.open_unused(key(0)) as whole:
        assert blobs.quarantine(key(0), whole)
    assert present(blobs, 0) == [False]
    assert len(list((tmp_path / "quarantine").iterdir())) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("function", ["posix_fallocate", "fsync", "chmod"])
def test_a_full_disk_is_a_quota_at_every_step_and_takes_no_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, function: str
) -> None:
    blobs = cached_blobs(tmp_path, budget_bytes=SIZE)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    patched: tuple[Any, Callable[..., None]] = (Path if function == "chmod" else os, fail)
    with monkeypatch.context() as patch:
        patch.setattr(patched[0], function, patched[1])
        with pytest.raises(QuotaExceededError, match="no space"):
            publish(blobs, 0)
    assert blobs.index.used_bytes() == 0
    assert blobs.digests() == []
    publish(blobs, 0)
