"""Passes of collection, and the time that they count as seen."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotslot.contract.garbage import RemovalKind
from hotslot.ids import TenantId, digest_of
from store_service.content.collection import Collector
from store_service.content.hold import holding
from store_service.content.published import PublishedBlobs
from store_service.content.uploads import UploadFolder
from store_service.content.waiting import CollectionOptions
from store_service.opening import Data, open_data
from store_service.settings import StoreSettings

ACME = TenantId("acme")
BLOB = b"left over"
OPTIONS = CollectionOptions(unreferenced_grace_s=100, upload_ttl_s=100, max_elapsed_s=20)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Setting:
    """A store's data with one blob and one upload that nothing refers to."""

    def __init__(self, data: Data, folder: Path) -> None:
        self.uploads = UploadFolder(folder, max_upload_bytes=1000)
        self.blobs = data.blobs
        published = PublishedBlobs(data.catalog, data.blobs)
        self.clock = Clock()
        self.collector = Collector(published, self.uploads, data.ledger, data.ownership, OPTIONS, self.clock)
        stage = data.blobs.writer(ACME)
        stage.write(BLOB)
        stage.publish(digest_of(BLOB), len(BLOB))
        upload = self.uploads.begin(ACME, digest_of(BLOB), len(BLOB))
        assert upload is not None
        upload.write(BLOB)
        upload.publish(digest_of(BLOB), len(BLOB))
        upload.close()

    def after(self, elapsed_s: float) -> tuple[int, int]:
        self.clock.now_s += elapsed_s
        counts = Counter(removal.kind for removal in self.collector.run())
        return counts[RemovalKind.BLOB], counts[RemovalKind.UPLOAD]


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    data = open_data(StoreSettings(data_dir=tmp_path), lambda tenant: None)
    yield Setting(data, tmp_path)
    data.engine.dispose()


def test_things_go_once_they_were_seen_for_long_enough(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store_service.content.uploads.time.time", lambda: 1e12)
    assert [setting.after(10) for _ in range(10)] == [(0, 0)] * 10
    assert setting.after(10) == (1, 1)
    assert setting.after(10) == (0, 0)
    assert not setting.blobs.contains(ACME, digest_of(BLOB))


def test_a_process_that_was_stopped_has_seen_nothing_meanwhile(setting: Setting) -> None:
    assert [setting.after(1e6) for _ in range(5)] == [(0, 0)] * 5
    assert setting.blobs.contains(ACME, digest_of(BLOB))


def test_passes_that_saw_nothing_do_not_count(setting: Setting, tmp_path: Path) -> None:
    assert [setting.after(20) for _ in range(5)] == [(0, 0)] * 5
    for _ in range(10):
        with holding(tmp_path, timeout_s=1):
            assert setting.after(20) == (0, 0)
        assert setting.after(20) == (0, 0)
    assert setting.after(20)[0] == 1


def test_an_upload_that_is_asked_for_begins_anew(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store_service.content.uploads.time.time", lambda: 1e12)
    assert [setting.after(19) for _ in range(6)] == [(0, 0)] * 6
    setting.uploads.path(ACME, digest_of(BLOB))
    assert setting.after(19) == (1, 0)
    assert [setting.after(19) for _ in range(5)] == [(0, 0)] * 5
    assert setting.after(19) == (0, 1)
