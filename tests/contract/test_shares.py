"""Shares, against SQLite and a real PostgreSQL: who is named reads and uses, nobody else finds anything."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, text

from hotslot.contract.catalog import AdapterEventKind
from hotslot.errors import (
    AdapterNotFoundError,
    CatalogDamagedError,
    InvalidReferenceError,
    NotFoundError,
    QuotaExceededError,
    TagNotFoundError,
)
from hotslot.formats.principals import EVERY_TENANT
from hotslot.ids import AdapterName, Digest, TagName, TenantId
from hotslot.references import parse_reference, shared_name
from store_service.catalog import shares as module
from store_service.catalog.catalog import Catalog
from store_service.catalog.shares import Shares
from tests.contract.test_catalog import ACME, BOT, OTHER, create, kinds, new_version

THIRD = TenantId("third")
SHARED = shared_name(ACME, BOT)


@pytest.fixture
def catalog(engine: Engine) -> Catalog:
    catalog = Catalog(engine)
    create(catalog, 1)
    return catalog


@pytest.fixture
def shares(engine: Engine, catalog: Catalog) -> Shares:
    return Shares(engine)


def weights_of(seed: int) -> Digest:
    return new_version(seed).manifest.weights_digest


READS: dict[str, Callable[[Catalog, TenantId], Any]] = {
    "get": lambda catalog, tenant: catalog.get_adapter(tenant, SHARED),
    "list versions": lambda catalog, tenant: catalog.list_versions(tenant, SHARED, limit=9, before=0),
    "resolve a tag": lambda catalog, tenant: catalog.resolve(tenant, parse_reference(SHARED)),
    "resolve a digest": lambda catalog, tenant: catalog.resolve(
        tenant, parse_reference(f"{SHARED}@{new_version(1).manifest.digest}")
    ),
}


def found_by(catalog: Catalog, tenant: TenantId) -> set[str]:
    """Reads of the shared adapter that find it."""
    found = set()
    for name, read in READS.items():
        try:
            assert read(catalog, tenant)
            found.add(name)
        except AdapterNotFoundError as exc:
            refused = exc.resource
        else:
            refused = SHARED
        assert refused == SHARED
    if catalog.readable_weights(tenant, weights_of(1)) is not None:
        found.add("weights")
    return found


EVERYTHING = {*READS, "weights"}


def test_an_adapter_is_read_by_the_tenants_that_it_is_shared_with_and_no_other(
    catalog: Catalog, shares: Shares
) -> None:
    assert found_by(catalog, ACME) == EVERYTHING
    assert found_by(catalog, OTHER) == found_by(catalog, THIRD) == set()
    shares.share(ACME, BOT, [OTHER])
    assert found_by(catalog, OTHER) == EVERYTHING
    assert found_by(catalog, THIRD) == set()
    record = catalog.get_adapter(OTHER, SHARED)
    assert record.name == record.newest.adapter == record.latest_version.adapter == SHARED  # type: ignore[union-attr]
    resolved = catalog.resolve(OTHER, parse_reference(SHARED))
    assert resolved.version.adapter == SHARED
    assert resolved.version.digest == catalog.resolve(ACME, parse_reference(BOT)).version.digest
    assert resolved.revision == catalog.revision(ACME)
    assert catalog.readable_weights(OTHER, weights_of(1))[0] == ACME  # type: ignore[index]


def test_versions_and_tags_that_come_later_are_shared_too(catalog: Catalog, shares: Shares) -> None:
    shares.share(ACME, BOT, [OTHER])
    create(catalog, 2, tag=TagName("stable"))
    found = catalog.resolve(OTHER, parse_reference(f"{SHARED}:stable"))
    assert found.version.digest == new_version(2).manifest.digest
    assert len(catalog.list_versions(OTHER, SHARED, limit=9, before=0)) == 2
    with pytest.raises(TagNotFoundError):
        catalog.resolve(OTHER, parse_reference(f"{SHARED}:nothing"))


ENDS: dict[str, Callable[[Catalog, Shares], Any]] = {
    "that tenant": lambda catalog, shares: shares.unshare(ACME, BOT, [OTHER]),
    "each": lambda catalog, shares: shares.unshare(ACME, BOT, []),
    "the adapter": lambda catalog, shares: catalog.delete_adapter(ACME, BOT, etag="", grace_s=60),
}


@pytest.mark.parametrize("kind", ENDS)
def test_what_is_shared_no_more_is_not_found(kind: str, catalog: Catalog, shares: Shares) -> None:
    shares.share(ACME, BOT, [OTHER])
    ENDS[kind](catalog, shares)
    assert found_by(catalog, OTHER) == set()
    if kind == "the adapter":
        catalog.undelete_adapter(ACME, BOT)
        assert found_by(catalog, OTHER) == EVERYTHING


def test_with_all_is_apart_from_tenants_by_name(catalog: Catalog, shares: Shares) -> None:
    record = shares.share(ACME, BOT, [OTHER, EVERY_TENANT])
    assert (record.tenants, record.all_tenants) == ((OTHER,), True)
    assert found_by(catalog, THIRD) == EVERYTHING
    record = shares.unshare(ACME, BOT, [EVERY_TENANT])
    assert (record.tenants, record.all_tenants) == ((OTHER,), False)
    assert found_by(catalog, OTHER) == EVERYTHING
    assert found_by(catalog, THIRD) == set()


CHANGES: dict[str, Callable[[Catalog, Shares, AdapterName], Any]] = {
    "set tag": lambda catalog, shares, name: catalog.set_tag(
        OTHER, name, TagName("mine"), new_version(1).manifest.digest, etag=""
    ),
    "delete tag": lambda catalog, shares, name: catalog.delete_tag(OTHER, name, TagName("latest"), etag=""),
    "delete adapter": lambda catalog, shares, name: catalog.delete_adapter(OTHER, name, etag="", grace_s=1),
    "delete version": lambda catalog, shares, name: catalog.delete_version(
        OTHER, name, new_version(1).manifest.digest, force=True
    ),
    "share on": lambda catalog, shares, name: shares.share(OTHER, name, [THIRD]),
    "unshare": lambda catalog, shares, name: shares.unshare(OTHER, name, []),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_who_an_adapter_is_shared_with_changes_nothing_of_it(kind: str, catalog: Catalog, shares: Shares) -> None:
    shares.share(ACME, BOT, [EVERY_TENANT])
    before = catalog.get_adapter(ACME, BOT)
    with pytest.raises(NotFoundError):
        CHANGES[kind](catalog, shares, SHARED)
    assert catalog.get_adapter(ACME, BOT) == before


def test_no_own_adapter_has_the_name_of_a_shared_one(catalog: Catalog, shares: Shares) -> None:
    shares.share(ACME, BOT, [OTHER])
    for tenant in (OTHER, ACME):
        with pytest.raises(InvalidReferenceError):
            create(catalog, 5, tenant=tenant, name=SHARED)
    assert catalog.resolve(OTHER, parse_reference(SHARED)).version.digest == new_version(1).manifest.digest


def test_changes_are_events_of_the_owner_and_what_changes_nothing_is_none(catalog: Catalog, shares: Shares) -> None:
    before, others = catalog.revision(ACME), catalog.revision(OTHER)
    made = shares.share(ACME, BOT, [OTHER])
    assert shares.share(ACME, BOT, [OTHER]) == made
    shares.unshare(ACME, BOT, [THIRD])
    shares.unshare(ACME, BOT, [OTHER])
    assert kinds(catalog, before) == [AdapterEventKind.ADAPTER_SHARED, AdapterEventKind.ADAPTER_UNSHARED]
    assert made.revision == before + 1
    assert catalog.revision(OTHER) == others


def test_shares_are_listed_for_their_owner_and_for_those_who_may_read(catalog: Catalog, shares: Shares) -> None:
    names = [AdapterName(f"bot-{number}") for number in range(3)]
    for number, name in enumerate(names):
        create(catalog, 10 + number, name=name)
        shares.share(ACME, name, [OTHER] if number != 1 else [THIRD])
    assert [record.adapter for record in shares.of_tenant(ACME, limit=9, after="")] == names
    assert [record.adapter for record in shares.of_tenant(ACME, limit=9, after=names[0])] == names[1:]
    assert shares.of_tenant(OTHER, limit=9, after="") == []
    seen = [record.name for record in shares.shared_with(OTHER, limit=9, after=("", ""))]
    assert seen == [shared_name(ACME, names[0]), shared_name(ACME, names[2])]
    assert [one.name for one in shares.shared_with(OTHER, limit=9, after=(ACME, names[0]))] == seen[1:]
    assert shares.shared_with(ACME, limit=9, after=("", "")) == []


def test_shares_of_one_adapter_are_bounded(catalog: Catalog, shares: Shares, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SHARES", 3)
    shares.share(ACME, BOT, ["a", "b", "c"])
    shares.share(ACME, BOT, ["a", "c"])
    with pytest.raises(QuotaExceededError):
        shares.share(ACME, BOT, ["d"])
    assert shares.of_tenant(ACME, limit=9, after="")[0].tenants == ("a", "b", "c")


def test_shares_of_what_is_not_there_are_not_found(shares: Shares) -> None:
    for change in (shares.share, shares.unshare):
        with pytest.raises(AdapterNotFoundError):
            change(ACME, AdapterName("nothing"), [OTHER])
        with pytest.raises(AdapterNotFoundError):
            change(OTHER, BOT, [THIRD])


def test_a_share_that_changed_by_itself_is_not_believed(engine: Engine, catalog: Catalog, shares: Shares) -> None:
    shares.share(ACME, BOT, [OTHER])
    with engine.begin() as connection:
        connection.execute(text("UPDATE adapter_shares SET tenant = 'third'"))
    for read in READS.values():
        with pytest.raises(CatalogDamagedError):
            read(catalog, THIRD)
    with pytest.raises(CatalogDamagedError):
        catalog.readable_weights(THIRD, weights_of(1))
    with pytest.raises(CatalogDamagedError):
        shares.shared_with(THIRD, limit=9, after=("", ""))
    assert found_by(catalog, OTHER) == set()
