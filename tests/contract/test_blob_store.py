"""What every ContentStore and UploadFolder must do."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hotslot.errors import BlobNotFoundError, DigestMismatchError, QuotaExceededError, UploadBusyError
from hotslot.ids import Digest, TenantId, digest_of
from store_service.content.objects import ObjectBlobs
from store_service.content.store import ContentStore
from store_service.content.uploads import UploadFolder
from store_service.content.writer import Writer
from tests.support.blob_cache import cached_blobs
from tests.support.object_storage import BUCKET, s3_server

ACME, OTHER = TenantId("acme"), TenantId("other")
DATA = os.urandom(300_000)
DIGEST = digest_of(DATA)

OpenBlobs = Callable[[], ContentStore]
OpenUploads = Callable[[], UploadFolder]


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    with s3_server() as variables, pytest.MonkeyPatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value)
        yield


@pytest.fixture(params=["local", "cached", "file", "s3"])
def open_blobs(request: pytest.FixtureRequest, tmp_path: Path) -> OpenBlobs:
    """Opens the store, again and again: what is kept outlives the object."""
    match request.param:
        case "local":
            return lambda: cached_blobs(tmp_path)
        case "cached":
            return lambda: cached_blobs(tmp_path, budget_bytes=10_000_000)
        case "file":
            return lambda: cached_blobs(tmp_path, ObjectBlobs(f"file://{tmp_path / 'objects'}"))
        case _:
            request.getfixturevalue("s3")
            return lambda: cached_blobs(tmp_path, ObjectBlobs(f"s3://{BUCKET}/{tmp_path.name}"))


@pytest.fixture(params=["local"])
def open_uploads(request: pytest.FixtureRequest, tmp_path: Path) -> OpenUploads:
    return lambda: UploadFolder(tmp_path, max_upload_bytes=1_000_000)


def publish(blobs: ContentStore, tenant: TenantId, data: bytes) -> Digest:
    stage = blobs.writer(tenant)
    stage.write(data[:7])
    stage.write(memoryview(data)[7:])
    stage.publish(digest_of(data), len(data))
    return digest_of(data)


def read(blobs: ContentStore, tenant: TenantId, digest: Digest) -> bytes:
    file, size_bytes = blobs.open(tenant, digest)
    with file:
        data = file.read()
    assert len(data) == size_bytes
    return data


def begin(uploads: UploadFolder, tenant: TenantId, digest: Digest, size_bytes: int) -> Writer:
    upload = uploads.begin(tenant, digest, size_bytes)
    assert upload is not None, "it is complete"
    return upload


def test_a_published_blob_is_read_back_after_a_restart(open_blobs: OpenBlobs) -> None:
    publish(open_blobs(), ACME, DATA)
    assert read(open_blobs(), ACME, DIGEST) == DATA
    assert open_blobs().digests() == [(ACME, DIGEST)]


def test_another_tenants_blob_is_not_there(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    publish(blobs, ACME, DATA)
    assert not blobs.contains(OTHER, DIGEST)
    with pytest.raises(BlobNotFoundError):
        blobs.open(OTHER, DIGEST)


def test_nothing_is_visible_before_it_is_published(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    stage = blobs.writer(ACME)
    stage.write(DATA)
    assert not blobs.contains(ACME, DIGEST)
    assert blobs.digests() == []
    stage.close()


def test_room_can_be_reserved_before_writing(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    stage = blobs.writer(ACME)
    stage.reserve(len(DATA) + 1)
    stage.write(DATA)
    stage.publish(DIGEST, len(DATA))
    assert read(blobs, ACME, DIGEST) == DATA


@pytest.mark.parametrize(
    ("digest", "size"), [(digest_of(b"x"), len(DATA)), (DIGEST, len(DATA) + 1)], ids=["digest", "size"]
)
def test_bytes_that_are_not_the_digests_are_never_published(open_blobs: OpenBlobs, digest: Digest, size: int) -> None:
    blobs = open_blobs()
    stage = blobs.writer(ACME)
    stage.write(DATA)
    with pytest.raises(DigestMismatchError):
        stage.publish(digest, size)
    assert open_blobs().digests() == []


def test_publishing_again_heals_a_rotten_blob(open_blobs: OpenBlobs, tmp_path: Path) -> None:
    blobs = open_blobs()
    publish(blobs, ACME, DATA)
    (path,) = (path for path in (tmp_path / "blobs").rglob("*") if path.is_file())
    path.chmod(0o644)
    path.write_bytes(b"rot" + DATA[3:])
    publish(blobs, ACME, DATA)
    assert read(blobs, ACME, DIGEST) == DATA


def test_a_reader_finishes_although_the_blob_is_deleted(open_blobs: OpenBlobs) -> None:
    blobs = open_blobs()
    publish(blobs, ACME, DATA)
    file, _ = blobs.open(ACME, DIGEST)
    blobs.delete(ACME, DIGEST)
    with file:
        assert file.read() == DATA
    assert not blobs.contains(ACME, DIGEST)
    blobs.delete(ACME, DIGEST)


def test_published_blobs_are_read_only_and_stages_go_at_the_next_start(open_blobs: OpenBlobs, tmp_path: Path) -> None:
    blobs = open_blobs()
    publish(blobs, ACME, DATA)
    blobs.writer(ACME).write(b"half")
    (path,) = (path for path in (tmp_path / "blobs").rglob("*") if path.is_file())
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert len(list((tmp_path / "stages").iterdir())) == 1
    open_blobs()
    assert list((tmp_path / "stages").iterdir()) == []


def test_a_full_disk_is_a_quota_and_leaves_nothing(open_blobs: OpenBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    blobs = open_blobs()
    stage = blobs.writer(ACME)
    stage.write(DATA)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_room)
        with pytest.raises(QuotaExceededError, match="no space"):
            stage.publish(DIGEST, len(DATA))
    stage.close()
    assert open_blobs().digests() == []


def test_an_upload_resumes_after_a_restart(open_uploads: OpenUploads) -> None:
    first = begin(open_uploads(), ACME, DIGEST, len(DATA))
    first.write(DATA[:1000])
    first.close()
    uploads = open_uploads()
    assert uploads.status(ACME, DIGEST) == (1000, False)
    second = begin(uploads, ACME, DIGEST, len(DATA))
    assert second.size_bytes == 1000
    second.write(DATA[1000:])
    second.publish(DIGEST, len(DATA))
    second.close()
    assert uploads.path(ACME, DIGEST).read_bytes() == DATA
    assert open_uploads().status(ACME, DIGEST) == (len(DATA), True)
    assert open_uploads().begin(ACME, DIGEST, len(DATA)) is None


def test_a_part_is_not_a_file(open_uploads: OpenUploads) -> None:
    uploads = open_uploads()
    upload = begin(uploads, ACME, DIGEST, len(DATA))
    upload.write(DATA)
    with pytest.raises(BlobNotFoundError):
        uploads.path(ACME, DIGEST)
    upload.close()


def test_an_upload_that_rotted_is_noticed_and_sent_again(open_uploads: OpenUploads) -> None:
    for is_rotten in (True, False):
        uploads = open_uploads()
        upload = begin(uploads, ACME, DIGEST, len(DATA))
        assert upload.size_bytes == 0
        upload.write(DATA)
        upload.publish(DIGEST, len(DATA))
        upload.close()
        path = uploads.path(ACME, DIGEST)
        assert uploads.verified_path(ACME, DIGEST).read_bytes() == DATA
        if is_rotten:
            path.chmod(0o644)
            path.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
            with pytest.raises(DigestMismatchError):
                uploads.verified_path(ACME, DIGEST)
            assert uploads.status(ACME, DIGEST) == (0, False)
            with pytest.raises(BlobNotFoundError):
                uploads.verified_path(ACME, DIGEST)


def test_only_one_stream_writes_an_upload(open_uploads: OpenUploads) -> None:
    uploads = open_uploads()
    upload = begin(uploads, ACME, DIGEST, len(DATA))
    with pytest.raises(UploadBusyError):
        begin(uploads, ACME, DIGEST, len(DATA))
    begin(uploads, OTHER, DIGEST, len(DATA)).close()
    upload.close()
    begin(uploads, ACME, DIGEST, len(DATA)).close()


def test_wrong_bytes_are_refused_and_the_upload_begins_anew(open_uploads: OpenUploads) -> None:
    uploads = open_uploads()
    upload = begin(uploads, ACME, DIGEST, len(DATA))
    upload.write(b"x" + DATA[1:])
    with pytest.raises(DigestMismatchError):
        upload.publish(DIGEST, len(DATA))
    upload.close()
    assert uploads.status(ACME, DIGEST) == (0, False)


def test_an_upload_above_the_limit_is_refused_at_once(open_uploads: OpenUploads) -> None:
    with pytest.raises(QuotaExceededError):
        begin(open_uploads(), ACME, DIGEST, 1_000_001)


def test_a_tenant_learns_nothing_of_anothers_uploads(open_uploads: OpenUploads) -> None:
    uploads = open_uploads()
    upload = begin(uploads, ACME, DIGEST, len(DATA))
    upload.write(DATA)
    upload.publish(DIGEST, len(DATA))
    upload.close()
    assert uploads.status(OTHER, DIGEST) == (0, False)
    assert begin(uploads, OTHER, DIGEST, len(DATA)).size_bytes == 0


def test_old_uploads_are_collected_and_busy_ones_kept(tmp_path: Path) -> None:
    uploads = UploadFolder(tmp_path, max_upload_bytes=1_000_000)
    for data in (b"a", b"b"):
        upload = begin(uploads, ACME, digest_of(data), 2)
        upload.write(data)
        if data == b"a":
            upload.close()
    later_s = upload_time(tmp_path) + 100
    assert uploads.collect(older_than_s=1000, now_unix_s=later_s) == 0
    assert uploads.collect(older_than_s=50, now_unix_s=later_s) == 1
    assert uploads.status(ACME, digest_of(b"b")) == (1, False)


def test_an_upload_that_is_asked_for_is_not_old(tmp_path: Path) -> None:
    uploads = UploadFolder(tmp_path, max_upload_bytes=1_000_000)
    upload = begin(uploads, ACME, DIGEST, len(DATA))
    upload.write(DATA)
    upload.publish(DIGEST, len(DATA))
    upload.close()
    os.utime(uploads.path(ACME, DIGEST), (0, 0))
    uploads.path(ACME, DIGEST)
    assert uploads.collect(older_than_s=3600) == 0
    os.utime(uploads.path(ACME, DIGEST), (0, 0))
    assert uploads.collect(older_than_s=3600) == 1
    with pytest.raises(BlobNotFoundError):
        uploads.path(ACME, DIGEST)


def upload_time(root: Path) -> float:
    return max(path.stat().st_mtime for path in (root / "uploads").rglob("*.part"))


def test_the_digest_of_a_resumed_upload_covers_all_of_it(open_uploads: OpenUploads) -> None:
    for end in (100, 200, len(DATA)):
        upload = begin(open_uploads(), ACME, DIGEST, len(DATA))
        upload.write(DATA[upload.size_bytes : end])
        if end == len(DATA):
            upload.publish(DIGEST, len(DATA))
        upload.close()
    data = open_uploads().path(ACME, DIGEST).read_bytes()
    assert "sha256:" + hashlib.sha256(data).hexdigest() == DIGEST
