"""What every Policies must do, against SQLite and a real PostgreSQL."""

import pytest
from sqlalchemy import Engine, text

from hotslot.contract.catalog import AdapterEventKind
from hotslot.errors import AdapterNotFoundError, CatalogDamagedError, EtagMismatchError, PolicyNotFoundError
from hotslot.ids import AdapterName, digest_of
from hotslot.references import parse_reference
from shared.fleet.replica_policy import ReplicaPolicy
from store_service.catalog.catalog import Catalog
from store_service.catalog.policies import Policies
from tests.contract.test_catalog import ACME, BOT, OTHER, create, kinds, new_version

POLICY = ReplicaPolicy(2, 5, pinned=True)
BASE = digest_of(b"acme/tiny")


@pytest.fixture
def catalog(engine: Engine) -> Catalog:
    catalog = Catalog(engine)
    create(catalog, 1)
    return catalog


@pytest.fixture
def policies(engine: Engine, catalog: Catalog) -> Policies:
    return Policies(engine)


def test_what_is_set_is_found_again_also_when_resolving(policies: Policies, catalog: Catalog) -> None:
    reference = parse_reference(BOT)
    assert catalog.resolve(ACME, reference).policy is None
    made = policies.set(ACME, BOT, POLICY, etag="")
    assert (made.adapter, made.policy) == (BOT, POLICY)
    assert policies.get(ACME, BOT) == made == catalog.resolve(ACME, reference).policy
    changed = policies.set(ACME, BOT, ReplicaPolicy(), etag=made.etag)
    assert policies.get(ACME, BOT) == changed
    assert changed.policy == ReplicaPolicy()


def test_changes_are_events_with_revisions_and_setting_the_same_is_none(policies: Policies, catalog: Catalog) -> None:
    before = catalog.revision(ACME)
    made = policies.set(ACME, BOT, POLICY, etag="")
    assert policies.set(ACME, BOT, POLICY, etag="") == made
    policies.delete(ACME, BOT, etag=made.etag)
    assert kinds(catalog, before) == [AdapterEventKind.POLICY_CHANGED, AdapterEventKind.POLICY_CHANGED]
    assert catalog.revision(ACME) == before + 2
    assert {event.adapter for event in catalog.events_after(ACME, before, limit=9)} == {BOT}


def test_an_old_etag_changes_nothing(policies: Policies) -> None:
    first = policies.set(ACME, BOT, POLICY, etag="")
    second = policies.set(ACME, BOT, ReplicaPolicy(1), etag=first.etag)
    for attempt in (
        lambda: policies.set(ACME, BOT, POLICY, etag=first.etag),
        lambda: policies.delete(ACME, BOT, etag=first.etag),
    ):
        with pytest.raises(EtagMismatchError):
            attempt()
    assert policies.get(ACME, BOT) == second
    policies.delete(ACME, BOT, etag=second.etag)
    with pytest.raises(EtagMismatchError):
        policies.set(ACME, BOT, POLICY, etag=second.etag)


def test_what_is_not_there_is_said_and_other_tenants_see_nothing(policies: Policies) -> None:
    with pytest.raises(PolicyNotFoundError):
        policies.get(ACME, BOT)
    with pytest.raises(PolicyNotFoundError):
        policies.delete(ACME, BOT, etag="")
    policies.set(ACME, BOT, POLICY, etag="")
    with pytest.raises(AdapterNotFoundError):
        policies.get(OTHER, BOT)
    with pytest.raises(AdapterNotFoundError):
        policies.set(OTHER, BOT, POLICY, etag="")
    assert policies.of_tenant(OTHER, limit=9, after="") == []


def test_listings_go_page_by_page(policies: Policies, catalog: Catalog) -> None:
    names = [AdapterName(f"bot-{number}") for number in range(5)]
    for number, name in enumerate(names):
        create(catalog, 10 + number, name)
        policies.set(ACME, name, ReplicaPolicy(number), etag="")
    first = policies.of_tenant(ACME, limit=3, after="")
    rest = policies.of_tenant(ACME, limit=3, after=first[-1].adapter)
    assert [record.adapter for record in (*first, *rest)] == names
    assert [record.policy.min_replicas for record in (*first, *rest)] == list(range(5))


def test_a_policy_goes_and_comes_back_with_its_adapter(policies: Policies, catalog: Catalog) -> None:
    made = policies.set(ACME, BOT, POLICY, etag="")
    catalog.delete_adapter(ACME, BOT, etag="", grace_s=100.0)
    assert policies.of_tenant(ACME, limit=9, after="") == []
    assert policies.pinned_for(BASE, limit=9, after=("", "")) == []
    catalog.undelete_adapter(ACME, BOT)
    assert policies.get(ACME, BOT) == made
    catalog.delete_adapter(ACME, BOT, etag="", grace_s=0.0)
    assert catalog.purge() == 1
    create(catalog, 1)
    with pytest.raises(PolicyNotFoundError):
        policies.get(ACME, BOT)


def test_workers_find_the_latest_versions_of_pinned_adapters_of_all_tenants(
    policies: Policies, catalog: Catalog
) -> None:
    create(catalog, 2, tenant=OTHER)
    create(catalog, 3, AdapterName("unpinned"))
    create(catalog, 4, AdapterName("elsewhere"), base="acme/large")
    create(catalog, 5, AdapterName("untagged"), tag=None)
    for name in ("elsewhere", "untagged", BOT):
        policies.set(ACME, AdapterName(name), POLICY, etag="")
    policies.set(ACME, AdapterName("unpinned"), ReplicaPolicy(3), etag="")
    policies.set(OTHER, BOT, POLICY, etag="")
    found = policies.pinned_for(BASE, limit=9, after=("", ""))
    assert [(pinned.tenant, pinned.record.adapter, pinned.digest) for pinned in found] == [
        (ACME, BOT, new_version(1).manifest.digest),
        (OTHER, BOT, new_version(2).manifest.digest),
    ]
    assert policies.pinned_for(BASE, limit=1, after=("", "")) == found[:1]
    assert policies.pinned_for(BASE, limit=9, after=(ACME, BOT)) == found[1:]
    create(catalog, 6)
    assert policies.pinned_for(BASE, limit=1, after=("", ""))[0].digest == new_version(6).manifest.digest


@pytest.mark.parametrize("column", ["min_replicas", "max_replicas", "revision"])
def test_a_row_that_changed_by_itself_is_not_believed(
    engine: Engine, policies: Policies, catalog: Catalog, column: str
) -> None:
    policies.set(ACME, BOT, POLICY, etag="")
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE adapter_policies SET {column} = {column} + 1"))
    for read in (
        lambda: policies.get(ACME, BOT),
        lambda: policies.of_tenant(ACME, limit=9, after=""),
        lambda: policies.pinned_for(BASE, limit=9, after=("", "")),
        lambda: catalog.resolve(ACME, parse_reference(BOT)),
    ):
        with pytest.raises(CatalogDamagedError):
            read()
