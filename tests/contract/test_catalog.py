"""What every Catalog must do, against SQLite and a real PostgreSQL."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text

from hotslot.contract.catalog import AdapterEventKind
from hotslot.errors import (
    AdapterNotFoundError,
    BaseModelNotFoundError,
    CatalogDamagedError,
    DigestMismatchError,
    EtagMismatchError,
    NotDeletedError,
    RevisionCompactedError,
    TagNotFoundError,
    VersionInUseError,
    VersionNotFoundError,
)
from hotslot.formats.base_spec import BaseSpec
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import AdapterName, Digest, TagName, TenantId, digest_of
from hotslot.references import parse_reference
from store_service.catalog import changes
from store_service.catalog.base_models import BaseModels
from store_service.catalog.catalog import Catalog
from store_service.catalog.database import catalog_id, open_database
from store_service.catalog.epochs import Epochs
from store_service.catalog.records import AdapterFilter, AdapterRecord, NewVersion, VersionRecord
from store_service.catalog.tables import metadata
from tests.support.checkpoints import base_spec

ACME, OTHER = TenantId("acme"), TenantId("other")
BOT = AdapterName("acme/bot")
LATEST, STABLE = TagName("latest"), TagName("stable")


@pytest.fixture
def catalog(engine: Engine) -> Catalog:
    return Catalog(engine)


def new_version(number: int, base: str = "acme/tiny") -> NewVersion:
    manifest = Manifest(
        base_model_digest=digest_of(base.encode()),
        weights_digest=digest_of(b"weights %d" % number),
        weights_size_bytes=number,
        dtype="F32",
        modules=(AdapterModule("model.layers.0.q_proj", 4, 2.0),),
    )
    return NewVersion(manifest, base, "upload", "{}")


def create(
    catalog: Catalog, number: int, name: AdapterName = BOT, tag: TagName | None = LATEST, tenant: TenantId = ACME,
    labels: dict[str, str] | None = None, etag: str = "", base: str = "acme/tiny",
) -> tuple[VersionRecord, bool]:  # fmt: skip
    version = new_version(number, base)
    return catalog.create_version(tenant, name, version, tag=tag, new_labels=labels or {}, tag_etag=etag)


def resolve(catalog: Catalog, reference: str, tenant: TenantId = ACME) -> Digest:
    return catalog.resolve(tenant, parse_reference(reference)).version.digest


def tag_etag(adapter: AdapterRecord, tag: TagName = LATEST) -> str:
    return next(found.etag for found in adapter.tags if found.name == tag)


def names(catalog: Catalog, wanted: AdapterFilter | None = None, tenant: TenantId = ACME) -> list[str]:
    found, _ = catalog.list_adapters(tenant, wanted or AdapterFilter(), limit=100, after=("", 0))
    return [record.name for _, record in found]


def kinds(catalog: Catalog, after: int = 0) -> list[AdapterEventKind]:
    return [event.kind for event in catalog.events_after(ACME, after, limit=1000)]


def test_a_version_is_resolved_by_tag_and_by_digest(catalog: Catalog) -> None:
    record, created = create(catalog, 1)
    assert created
    assert record.tags == (LATEST,)
    assert resolve(catalog, "acme/bot") == record.digest
    assert resolve(catalog, f"acme/bot@{record.digest}") == record.digest
    assert catalog.resolve(ACME, parse_reference("acme/bot")).version == record


def test_the_same_content_is_the_same_version(catalog: Catalog) -> None:
    first, _ = create(catalog, 1)
    revision = catalog.revision(ACME)
    second, created = create(catalog, 1)
    assert (second.digest, created) == (first.digest, False)
    assert catalog.revision(ACME) == revision


def test_a_tag_moves_and_the_old_version_stays(catalog: Catalog) -> None:
    first, _ = create(catalog, 1)
    second, _ = create(catalog, 2)
    assert resolve(catalog, "acme/bot") == second.digest
    assert resolve(catalog, f"acme/bot@{first.digest}") == first.digest
    tag = catalog.set_tag(ACME, BOT, STABLE, first.digest, etag="")
    assert (tag.name, tag.digest) == (STABLE, first.digest)


def test_a_catalog_knows_itself_and_how_far_it_is(catalog: Catalog, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM catalog_identity"))
    with pytest.raises(CatalogDamagedError, match="identity"):
        catalog.state()
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO catalog_identity VALUES ('mine')"))
    before = catalog.state()
    assert before.id == catalog_id(engine) == "mine"
    create(catalog, 1)
    create(catalog, 1, tenant=OTHER)
    after = catalog.state()
    assert after.id == before.id
    assert after.num_changes == catalog.revision(ACME) + catalog.revision(OTHER) > before.num_changes


def test_a_version_without_a_tag_moves_none(catalog: Catalog) -> None:
    first, _ = create(catalog, 1)
    create(catalog, 2, tag=None)
    assert resolve(catalog, "acme/bot") == first.digest


def test_an_old_etag_changes_nothing(catalog: Catalog) -> None:
    first, _ = create(catalog, 1)
    before = catalog.get_adapter(ACME, BOT)
    second, _ = create(catalog, 2)
    revision = catalog.revision(ACME)
    with pytest.raises(EtagMismatchError):
        create(catalog, 3, etag=tag_etag(before))
    with pytest.raises(EtagMismatchError):
        catalog.set_tag(ACME, BOT, LATEST, first.digest, etag=tag_etag(before))
    with pytest.raises(EtagMismatchError):
        catalog.delete_tag(ACME, BOT, LATEST, etag=tag_etag(before))
    with pytest.raises(EtagMismatchError):
        catalog.delete_adapter(ACME, BOT, etag=before.etag, grace_s=60)
    assert resolve(catalog, "acme/bot") == second.digest
    assert catalog.revision(ACME) == revision
    assert catalog.get_adapter(ACME, BOT).num_versions == 2


def test_the_current_etag_is_accepted(catalog: Catalog) -> None:
    create(catalog, 1)
    etag = tag_etag(catalog.get_adapter(ACME, BOT))
    second, _ = create(catalog, 2, etag=etag)
    assert resolve(catalog, "acme/bot") == second.digest


def test_of_two_writers_with_one_etag_one_wins(catalog: Catalog) -> None:
    create(catalog, 1)
    etag = tag_etag(catalog.get_adapter(ACME, BOT))
    barrier = threading.Barrier(8)

    def attempt(number: int) -> bool:
        barrier.wait()
        try:
            create(catalog, number, etag=etag)
        except EtagMismatchError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(10, 18))) == 1


def test_writers_of_the_same_content_at_once_get_one_version(catalog: Catalog) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: create(catalog, 1), range(16)))
    assert len({record.digest for record, _ in results}) == 1
    assert sum(created for _, created in results) == 1
    assert kinds(catalog) == [AdapterEventKind.VERSION_CREATED, AdapterEventKind.TAG_MOVED]


def test_revisions_have_no_gaps_under_concurrent_writers(catalog: Catalog) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: create(catalog, n, AdapterName(f"bot-{n % 3}")), range(24)))
    events = catalog.events_after(ACME, 0, limit=1000)
    assert [event.revision for event in events] == list(range(1, len(events) + 1))


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        ("nobody/here", AdapterNotFoundError),
        ("acme/bot:nightly", TagNotFoundError),
        (f"acme/bot@{digest_of(b'?')}", VersionNotFoundError),
    ],
)
def test_what_is_not_there_says_what(catalog: Catalog, reference: str, error: type[Exception]) -> None:
    create(catalog, 1)
    with pytest.raises(error):
        resolve(catalog, reference)


def test_a_tenant_sees_nothing_of_another(catalog: Catalog) -> None:
    record, _ = create(catalog, 1)
    with pytest.raises(AdapterNotFoundError):
        resolve(catalog, "acme/bot", OTHER)
    with pytest.raises(AdapterNotFoundError):
        catalog.delete_adapter(OTHER, BOT, etag="", grace_s=0)
    assert names(catalog, tenant=OTHER) == []
    assert catalog.events_after(OTHER, 0, limit=10) == []
    assert catalog.revision(OTHER) == 0
    assert not catalog.readable_weights(OTHER, record.manifest.weights_digest)
    assert catalog.readable_weights(ACME, record.manifest.weights_digest) == (ACME, record.manifest.weights_size_bytes)


def test_listing_is_by_name_page_by_page(catalog: Catalog) -> None:
    expected = sorted(f"bot-{number:02d}" for number in range(25))
    for number, name in enumerate(reversed(expected)):
        create(catalog, number, AdapterName(name))
    found: list[str] = []
    after = ("", 0)
    while page := catalog.list_adapters(ACME, AdapterFilter(), limit=7, after=after)[0]:
        found += [record.name for _, record in page]
        after = (page[-1][1].name, page[-1][0])
    assert found == expected


def test_listing_filters_by_base_labels_and_prefix(catalog: Catalog) -> None:
    create(catalog, 1, AdapterName("a"), labels={"team": "x", "env": "prod"})
    create(catalog, 2, AdapterName("b"), labels={"team": "x"})
    create(catalog, 3, AdapterName("b_c"), base="acme/large")
    assert names(catalog, AdapterFilter(labels={"team": "x"})) == ["a", "b"]
    assert names(catalog, AdapterFilter(labels={"team": "x", "env": "prod"})) == ["a"]
    assert names(catalog, AdapterFilter(base_model="acme/large")) == ["b_c"]
    assert names(catalog, AdapterFilter(base_model=digest_of(b"acme/large"))) == ["b_c"]
    assert names(catalog, AdapterFilter(name_prefix="b")) == ["b", "b_c"]
    assert names(catalog, AdapterFilter(name_prefix="%")) == []


def test_an_adapter_shows_tags_labels_and_its_newest_version(catalog: Catalog) -> None:
    create(catalog, 1, labels={"a": "1"})
    newest, _ = create(catalog, 2, labels={"b": "2"})
    adapter = catalog.get_adapter(ACME, BOT)
    assert (adapter.num_versions, adapter.labels) == (2, {"a": "1", "b": "2"})
    assert [tag.name for tag in adapter.tags] == [LATEST]
    assert adapter.latest_version == newest


def test_listings_tell_what_the_manifest_says(catalog: Catalog) -> None:
    record, _ = create(catalog, 7)
    ((_, listed),), _ = catalog.list_adapters(ACME, AdapterFilter(), limit=9, after=("", 0))
    ((_, version),) = catalog.list_versions(ACME, BOT, limit=9, before=0)
    manifest = record.manifest
    assert listed.newest == version
    assert (version.weights_digest, version.base_model_digest) == (manifest.weights_digest, manifest.base_model_digest)
    assert (version.weights_size_bytes, version.max_rank, version.dtype) == (7, manifest.max_rank, manifest.dtype)
    assert (version.digest, version.tags, version.create_time_s) == (record.digest, (LATEST,), record.create_time_s)


def test_versions_are_listed_newest_first_page_by_page(catalog: Catalog) -> None:
    digests = [create(catalog, number)[0].digest for number in range(5)]
    first = catalog.list_versions(ACME, BOT, limit=3, before=0)
    second = catalog.list_versions(ACME, BOT, limit=3, before=first[-1][0])
    assert [record.digest for _, record in first + second] == digests[::-1]
    assert first[0][1].tags == (LATEST,)


def test_a_deleted_adapter_is_hidden_and_can_be_brought_back(catalog: Catalog) -> None:
    record, _ = create(catalog, 1, labels={"a": "1"})
    deleted = catalog.delete_adapter(ACME, BOT, etag="", grace_s=60)
    assert deleted.delete_time_s is not None
    with pytest.raises(AdapterNotFoundError):
        resolve(catalog, "acme/bot")
    assert names(catalog) == []
    assert names(catalog, AdapterFilter(show_deleted=True)) == [BOT]
    assert not catalog.readable_weights(ACME, record.manifest.weights_digest)
    assert catalog.referenced_weights() == {(ACME, record.manifest.weights_digest)}
    assert catalog.purge() == 0
    restored = catalog.undelete_adapter(ACME, BOT)
    assert (restored.labels, restored.num_versions, restored.delete_time_s) == ({"a": "1"}, 1, None)
    assert resolve(catalog, "acme/bot") == record.digest


def test_a_purged_adapter_is_gone_for_good(catalog: Catalog) -> None:
    create(catalog, 1)
    catalog.delete_adapter(ACME, BOT, etag="", grace_s=0)
    with pytest.raises(AdapterNotFoundError):
        catalog.undelete_adapter(ACME, BOT)
    assert catalog.purge() == 1
    assert catalog.referenced_weights() == set()
    assert names(catalog, AdapterFilter(show_deleted=True)) == []


def test_a_name_can_be_used_anew_while_its_old_adapter_is_deleted(catalog: Catalog) -> None:
    create(catalog, 1)
    catalog.delete_adapter(ACME, BOT, etag="", grace_s=60)
    second, _ = create(catalog, 2)
    assert catalog.get_adapter(ACME, BOT).num_versions == 1
    with pytest.raises(NotDeletedError):
        catalog.undelete_adapter(ACME, BOT)
    assert resolve(catalog, "acme/bot") == second.digest


def test_what_is_not_deleted_cannot_be_undeleted(catalog: Catalog) -> None:
    with pytest.raises(AdapterNotFoundError):
        catalog.undelete_adapter(ACME, BOT)
    create(catalog, 1)
    with pytest.raises(NotDeletedError):
        catalog.undelete_adapter(ACME, BOT)


def test_a_tagged_version_is_deleted_by_force_only(catalog: Catalog) -> None:
    record, _ = create(catalog, 1)
    catalog.set_tag(ACME, BOT, STABLE, record.digest, etag="")
    with pytest.raises(VersionInUseError, match="latest, stable"):
        catalog.delete_version(ACME, BOT, record.digest, force=False)
    catalog.delete_version(ACME, BOT, record.digest, force=True)
    assert catalog.get_adapter(ACME, BOT).tags == ()
    with pytest.raises(VersionNotFoundError):
        catalog.delete_version(ACME, BOT, record.digest, force=True)
    assert kinds(catalog)[-3:] == [
        AdapterEventKind.TAG_DELETED,
        AdapterEventKind.TAG_DELETED,
        AdapterEventKind.VERSION_DELETED,
    ]


def test_a_tag_can_be_deleted(catalog: Catalog) -> None:
    record, _ = create(catalog, 1)
    catalog.delete_tag(ACME, BOT, LATEST, etag="")
    with pytest.raises(TagNotFoundError):
        resolve(catalog, "acme/bot")
    with pytest.raises(TagNotFoundError):
        catalog.delete_tag(ACME, BOT, LATEST, etag="")
    assert resolve(catalog, f"acme/bot@{record.digest}") == record.digest


def test_events_tell_what_happened_in_order(catalog: Catalog) -> None:
    first, _ = create(catalog, 1)
    create(catalog, 2)
    catalog.delete_adapter(ACME, BOT, etag="", grace_s=60)
    catalog.undelete_adapter(ACME, BOT)
    events = catalog.events_after(ACME, 0, limit=1000)
    assert [event.kind.value for event in events] == [
        "version_created", "tag_moved", "version_created", "tag_moved", "adapter_deleted", "adapter_undeleted"
    ]  # fmt: skip
    assert (events[1].adapter, events[1].tag, events[1].digest) == (BOT, LATEST, first.digest)
    assert [event.revision for event in catalog.events_after(ACME, 4, limit=1)] == [5]


def test_revisions_that_are_gone_or_ahead_are_refused(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "KEPT_EVENTS", 4)
    monkeypatch.setattr(changes, "TRIM_EVERY", 10)
    for number in range(5):
        create(catalog, number)
    assert catalog.revision(ACME) == 10
    assert len(catalog.events_after(ACME, 6, limit=100)) == 4
    for revision in (5, 11):
        with pytest.raises(RevisionCompactedError):
            catalog.events_after(ACME, revision, limit=100)


def test_a_manifest_that_rotted_is_never_given_out(catalog: Catalog, engine: Engine) -> None:
    create(catalog, 1)
    with engine.begin() as connection:
        connection.execute(text("UPDATE versions SET manifest_json = :rot"), {"rot": b'{"format": "x"}'})
    with pytest.raises(DigestMismatchError):
        resolve(catalog, "acme/bot")


def test_changes_are_announced_after_they_are_durable(engine: Engine) -> None:
    seen: list[tuple[TenantId, int]] = []
    catalog = Catalog(engine, lambda tenant: seen.append((tenant, Catalog(engine).revision(tenant))))
    create(catalog, 1)
    with pytest.raises(EtagMismatchError):
        create(catalog, 2, etag="no")
    assert seen == [(ACME, 2)]


def test_all_of_it_is_there_after_a_restart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'c'}"
    record, _ = create(Catalog(open_database(url)), 1)
    assert resolve(Catalog(open_database(url)), "acme/bot") == record.digest


def test_migrations_make_the_tables_that_the_code_uses(engine: Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_file_that_is_no_database_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"not a database" * 1000)
    with pytest.raises(CatalogDamagedError):
        open_database(f"sqlite:///{tmp_path / 'c'}")


def test_base_models_are_found_by_name_and_by_digest(engine: Engine) -> None:
    models = BaseModels(engine)
    spec = base_spec()
    assert models.register(spec)[1]
    assert not models.register(spec)[1]
    assert models.get(spec.name).spec == spec
    assert models.get(spec.digest).spec == spec
    with pytest.raises(BaseModelNotFoundError):
        models.get("nobody")


def test_digests_of_values_are_added_to_a_base_model_that_was_registered_without(engine: Engine) -> None:
    models = BaseModels(engine)
    without = base_spec()
    digest = digest_of(b"values")
    spec = replace(without, modules=(replace(without.modules[0], values_digest=digest), *without.modules[1:]))
    models.register(without)
    assert not models.register(spec)[1]
    assert not models.register(without)[1]
    assert [module.values_digest for module in models.get(spec.digest).spec.modules][:2] == [digest, ""]


def test_a_base_models_name_means_what_it_was_moved_to_last(engine: Engine) -> None:
    models = BaseModels(engine)
    specs: list[BaseSpec] = [base_spec(fingerprint=fingerprint) for fingerprint in "ab"]
    for spec in specs:
        models.register(spec, move=True)
    assert models.get("acme/tiny").spec == specs[1]
    assert models.get(specs[0].digest).spec == specs[0]
    listed = models.list(limit=1, after=0)
    assert [record.spec for _, record in listed + models.list(limit=9, after=listed[-1][0])] == specs


def test_epochs_only_grow_whatever_the_clock_does(engine: Engine) -> None:
    first = Epochs(engine, clock=lambda: 1_000.0).issue()
    after_a_step_back = Epochs(engine, clock=lambda: 10.0).issue()
    after_a_step_forward = Epochs(engine, clock=lambda: 2_000.0).issue()
    assert [first, after_a_step_back, after_a_step_forward] == [1_000_000, 1_000_001, 2_000_000]


def test_epochs_asked_for_at_once_are_all_different(engine: Engine) -> None:
    epochs = Epochs(engine, clock=lambda: 0.0)
    with ThreadPoolExecutor(8) as threads:
        issued = list(threads.map(lambda _: epochs.issue(), range(40)))
    assert sorted(issued) == list(range(1, 41))
