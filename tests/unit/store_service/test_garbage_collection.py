"""Dry runs of collection against runs: whatever was done to a store, exactly what was said goes, with its reason."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from hotslot.contract.garbage import Removal, RemovalKind, RemovalReason
from hotslot.ids import AdapterName, TagName, TenantId, digest_of
from shared.fleet.replica_policy import ReplicaPolicy
from store_service.catalog.policies import Policies
from store_service.catalog.pruning import VersionRetention
from store_service.catalog.records import NewVersion
from store_service.catalog.retention import RetentionPolicy
from store_service.catalog.tables import metadata
from store_service.content.collection import Collector
from store_service.content.object_collection import ObjectCollection
from store_service.content.objects import ObjectNote
from store_service.content.published import PublishedBlobs
from store_service.content.released import ReleasedBlobs
from store_service.content.uploads import UploadFolder
from store_service.content.waiting import CollectionOptions
from store_service.garbage_collection import GarbageCollection
from store_service.opening import Data, open_data
from store_service.settings import StoreSettings
from tests.contract.test_catalog import new_version

TENANTS = (TenantId("acme"), TenantId("other"))
NAMES = tuple(map(AdapterName, ("bot", "helper")))
LATEST = TagName("latest")
Step: TypeAlias = tuple[str, tuple[TenantId, AdapterName], Any]
GRACE_S, UPLOAD_TTL_S = 100.0, 60.0

who = st.sampled_from([(tenant, name) for tenant in TENANTS for name in NAMES])
numbers = st.integers(0, 3)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), who, numbers),
        st.tuples(st.just("publish"), who, numbers),
        st.tuples(st.just("delete version"), who, numbers),
        st.tuples(st.just("delete adapter"), who, st.sampled_from([0.0, 1e6])),
        st.tuples(st.just("retain"), who, st.integers(1, 2)),
        st.tuples(st.just("orphan"), who, numbers),
        st.tuples(st.just("upload"), who, numbers),
        st.tuples(st.just("lose copy"), who, numbers),
        st.tuples(st.just("bring copy"), who, numbers),
        st.tuples(st.just("wait"), who, st.sampled_from([5.0, 20.0, 90.0])),
        st.tuples(st.just("pass"), who, st.sampled_from([5.0, 20.0, 90.0])),
        st.tuples(st.just("full pass"), who, st.sampled_from([20.0])),
        st.tuples(st.just("prune"), who, st.just(0)),
    ),
    max_size=24,
)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class World:
    """A store's data with everything that can become garbage."""

    def __init__(self, data: Data, folder: Path) -> None:
        self.data, self.folder = data, folder
        self.clock = Clock()
        options = CollectionOptions(GRACE_S, UPLOAD_TTL_S, 1e9)
        self.uploads = UploadFolder(folder, max_upload_bytes=1000)
        self.published = PublishedBlobs(data.catalog, data.blobs, data.claims)
        objects = None
        if (place := data.blobs.objects) is not None:
            parts = data.claims, data.leases, ObjectNote(place), data.ownership, options
            objects = ObjectCollection(place, *parts, clock=self.clock)
        collector = Collector(
            self.published, self.uploads, data.ledger, data.ownership, options, self.clock, objects=objects
        )
        self.collector = collector
        self.policies = Policies(data.engine)
        self.retention = VersionRetention(data.engine, grace_s=0.0)
        released = ReleasedBlobs(self.published, self.retention, data.ownership, objects)
        self.garbage = GarbageCollection(self.retention, self.policies, released, collector, data.ownership, objects)

    def take(self, step: Step) -> None:
        """Do one thing; what makes no sense now changes nothing."""
        what, (tenant, name), number = step
        live = {(t, n) for t in TENANTS for n in NAMES if self._is_live(t, n)}
        match what:
            case "publish":
                self._write(tenant, b"weights %d" % number)
                self.data.catalog.create_version(
                    tenant, name, self._version(number), tag=LATEST, new_labels={}, tag_etag=""
                )
            case "delete version" if (tenant, name) in live:
                digest = self._version(number).manifest.digest
                found = self.data.catalog.list_versions(tenant, name, limit=9, before=0)
                if digest in {version.digest for _, version in found}:
                    self.data.catalog.delete_version(tenant, name, digest, force=True)
            case "delete adapter" if (tenant, name) in live:
                self.data.catalog.delete_adapter(tenant, name, etag="", grace_s=number)
            case "retain" if (tenant, name) in live:
                self.policies.set(
                    tenant, name, ReplicaPolicy(), etag="", retention=lambda before: RetentionPolicy(number)
                )
            case "prune" if (tenant, name) in live:
                self.retention.prune(tenant, name)
            case "orphan":
                self._write(tenant, b"orphan %d" % number)
            case "upload":
                data = b"upload %d" % number
                upload = self.uploads.begin(tenant, digest_of(data), len(data))
                if upload is not None:
                    upload.write(data)
                    upload.publish(digest_of(data), len(data))
                    upload.close()
                    os.utime(self.uploads.path(tenant, digest_of(data)), (1.0, 1.0 + number))
            case "lose copy" if self.data.blobs.objects is not None:
                self.data.blobs.delete_local((tenant, digest_of(b"weights %d" % number)))
            case "bring copy" if self.data.blobs.objects is not None:
                key = tenant, digest_of(b"weights %d" % number)
                if self.data.blobs.index.is_stored(key):
                    self._write(tenant, b"weights %d" % number, is_new=False)
            case "wait":
                self.clock.now_s += number
            case "pass" | "full pass":
                self.clock.now_s += number
                self.collector.run(full=what == "full pass")

    def seen(self) -> tuple[dict[str, int], list[str]]:
        """Every file with its size, without notes, and every row of the catalog."""
        files = {
            str(path.relative_to(self.folder)): path.stat().st_size
            for top in ("blobs", "uploads", "objects/blobs", "objects/uploads")
            for path in (self.folder / top).rglob("*")
            if path.is_file()
        }
        with self.data.engine.connect() as connection:
            tables = [table.name for table in metadata.sorted_tables if table.name != "leases"]
            return files, [f"{t} {row}" for t in tables for row in connection.execute(text(f"SELECT * FROM {t}"))]

    def _is_live(self, tenant: TenantId, name: AdapterName) -> bool:
        with self.data.engine.connect() as connection:
            query = text("SELECT 1 FROM adapters WHERE tenant = :t AND name = :n AND delete_time_s IS NULL")
            return connection.execute(query, {"t": tenant, "n": name}).first() is not None

    def _version(self, number: int) -> NewVersion:
        return new_version(number)

    def _write(self, tenant: TenantId, data: bytes, *, is_new: bool = True) -> None:
        writer = self.data.blobs.writer(tenant, is_new=is_new)
        writer.write(data)
        writer.publish(digest_of(data), len(data))
        writer.close()


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store's folder with an empty catalog: migrations take longer than everything else here."""
    folder = tmp_path_factory.mktemp("empty")
    open_data(StoreSettings(data_dir=folder), lambda tenant: None).engine.dispose()
    return folder


@contextmanager
def world(empty: Path, *, objects: bool) -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="garbage-") as name:
        folder = Path(name) / "data"
        shutil.copytree(empty, folder)
        url = f"file://{folder / 'objects'}" if objects else None
        data = open_data(StoreSettings(data_dir=folder, blob_url=url), lambda tenant: None)  # type: ignore[arg-type]
        try:
            yield World(data, folder)
        finally:
            data.engine.dispose()


def said(removals: tuple[Removal, ...]) -> list[tuple[Any, ...]]:
    return sorted((r.kind, r.reason, r.tenant, r.name, r.digest, r.size_bytes) for r in removals)


A = (TENANTS[0], NAMES[0])
NAME_IS_TAKEN_AGAIN: list[Step] = [
    ("publish", A, 0), ("delete adapter", A, 1e6), ("publish", A, 0), ("publish", A, 1), ("retain", A, 1),
]  # fmt: skip
"""A deleted adapter, which may come back, and a live one of its name have one version; retention removes one's."""
COPY_COMES_BACK: list[Step] = [
    ("publish", A, 0), ("delete version", A, 0), ("full pass", A, 20.0), ("lose copy", A, 0), ("full pass", A, 90.0),
    ("bring copy", A, 0), ("wait", A, 20.0),
]  # fmt: skip
"""The object is due, and its copy on the disk, which is new there, goes with it."""


def check_a_run_against_its_dry_run(empty: Path, taken: list[Step], *, objects: bool) -> None:
    with world(empty, objects=objects) as store:
        for step in taken:
            store.take(step)
        before = store.seen()
        plan = store.garbage.plan()
        assert store.seen() == before, "a dry run changed something"
        report = store.garbage.run()
        assert said(report.removals) == said(plan.due)
        files, _ = store.seen()
        gone = before[0].keys() - files.keys()
        bytes_gone = [r for r in plan.due if r.kind not in (RemovalKind.ADAPTER, RemovalKind.VERSION)]
        assert len(gone) == len(bytes_gone)
        assert sum(before[0][name] for name in gone) == sum(removal.size_bytes for removal in bytes_gone)
        waiting = said(tuple(r for r in plan.removals if r.wait_s))
        assert said(store.garbage.plan().removals) == waiting


@settings(max_examples=6, deadline=None)
@given(taken=steps)
@example(taken=[("publish", A, 0), ("delete version", A, 0), ("full pass", A, 20.0), ("pass", A, 90.0)])
@example(taken=COPY_COMES_BACK)
@example(taken=NAME_IS_TAKEN_AGAIN)
@example(taken=[("publish", A, 0), ("publish", A, 1), ("retain", A, 1)])
@example(taken=[("publish", A, 0), ("delete adapter", A, 0.0), ("upload", A, 1)])
@example(taken=[("orphan", A, 0), ("full pass", A, 20.0), ("full pass", A, 20.0), ("pass", A, 90.0), ("upload", A, 0)])
def test_a_run_removes_exactly_what_a_dry_run_said(empty: Path, taken: list[Step]) -> None:
    check_a_run_against_its_dry_run(empty, taken, objects=True)


@settings(max_examples=6, deadline=None)
@given(taken=steps)
def test_a_run_over_a_disk_alone_removes_exactly_what_a_dry_run_said(empty: Path, taken: list[Step]) -> None:
    check_a_run_against_its_dry_run(empty, taken, objects=False)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@settings(max_examples=150, deadline=None)
@given(taken=steps, objects=st.booleans())
def test_many_runs_remove_exactly_what_dry_runs_said(empty: Path, taken: list[Step], objects: bool) -> None:
    check_a_run_against_its_dry_run(empty, taken, objects=objects)


def test_reasons_ages_and_waits_are_told(empty: Path) -> None:
    with world(empty, objects=True) as store:
        for step in [("publish", A, 0), ("delete version", A, 0), ("full pass", A, 20.0), ("pass", A, 20.0)]:
            store.take(step)
        store.clock.now_s += 30
        found = {removal.kind: removal for removal in store.garbage.plan().removals}
        assert found.keys() == {RemovalKind.BLOB, RemovalKind.OBJECT}
        for removal in found.values():
            assert removal.reason is RemovalReason.UNREFERENCED
            assert (removal.tenant, removal.size_bytes) == ("acme", len(b"weights 0"))
            assert (removal.age_s, removal.wait_s) == (50, GRACE_S - 50)


def test_a_pass_between_looks_at_everything_asks_about_what_changed_alone(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world(empty, objects=True) as store:
        for number in range(3):
            store.take(("publish", A, number))
        store.collector.run()
        asked: list[set[Any]] = []
        references = store.data.catalog.references
        among = references.among
        monkeypatch.setattr(references, "all", lambda departed: pytest.fail("all versions were looked at"))

        def ask(keys: Any, *rest: Any) -> Any:
            asked.append(set(keys))
            return among(keys, *rest)

        monkeypatch.setattr(references, "among", ask)
        monkeypatch.setattr(store.data.blobs.objects, "found", lambda: pytest.fail("all objects were listed"))
        store.take(("delete version", A, 1))
        store.take(("orphan", A, 5))
        store.take(("pass", A, 10.0))
        store.take(("pass", A, 10.0))
        dropped, orphan = digest_of(b"weights 1"), digest_of(b"orphan 5")
        later = [{key[1] for key in keys} for keys in asked[2:]]
        assert later == [{dropped, orphan}, {dropped}]
        monkeypatch.undo()
        waits = {(r.kind, r.digest): r.age_s for r in store.garbage.plan().removals}
        assert waits[RemovalKind.BLOB, dropped] == waits[RemovalKind.OBJECT, dropped] == 10


@pytest.mark.parametrize("objects", [False, True], ids=["disk", "objects"])
def test_what_went_is_not_removed_again_and_what_comes_in_its_place_waits_anew(empty: Path, *, objects: bool) -> None:
    with world(empty, objects=objects) as store:
        orphan: Step = ("orphan", A, 0)
        store.take(orphan)
        store.collector.run(full=True)
        store.clock.now_s += GRACE_S
        store.collector.run(full=True)
        assert not store.seen()[0]
        for _ in range(3):
            store.clock.now_s += 5.0
            assert store.collector.run() == []
        store.take(orphan)
        store.clock.now_s += 5.0
        store.collector.run(full=True)
        for _ in range(3):
            store.clock.now_s += 5.0
            store.collector.run()
            assert store.seen()[0], "it went before it had waited"
        store.clock.now_s += GRACE_S
        store.collector.run()
        assert not store.seen()[0]
