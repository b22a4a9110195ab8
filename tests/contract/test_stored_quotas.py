"""Quotas of what a tenant keeps, against SQLite and a real PostgreSQL: exact under concurrency, freed by deleting."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from sqlalchemy import Engine

from hotslot.contract.quotas import QuotaKind
from hotslot.errors import TenantQuotaError
from hotslot.ids import AdapterName, TagName, TenantId
from shared.quotas.limits import TenantLimits
from store_service.catalog.catalog import Catalog
from store_service.catalog.quota_checks import StoredQuotas, stored_use
from tests.contract.test_catalog import new_version

ACME, OTHER = TenantId("acme"), TenantId("other")
LATEST = TagName("latest")
ADAPTERS, VERSIONS, BYTES = QuotaKind.ADAPTERS, QuotaKind.VERSIONS, QuotaKind.BYTES


def catalog(engine: Engine, **limits: int) -> Catalog:
    return Catalog(engine, quotas=StoredQuotas(TenantLimits({QuotaKind(kind): most for kind, most in limits.items()})))


def publish(it: Catalog, name: str, number: int, tenant: TenantId = ACME) -> None:
    """A version of as many bytes as its number."""
    version = new_version(number)
    it.create_version(tenant, AdapterName(name), version, tag=LATEST, new_labels={}, tag_etag="")


@pytest.mark.parametrize("kind", ["adapters", "versions", "bytes"])
def test_publications_at_the_same_time_through_several_stores_never_exceed_a_quota(engine: Engine, kind: str) -> None:
    most, each = 5, 10
    stores = [catalog(engine, **{kind: most * each if kind == "bytes" else most}) for _ in range(4)]
    numbers, lock, refused = count(), threading.Lock(), []

    def run(store: Catalog) -> None:
        for _ in range(6):
            with lock:
                number = next(numbers)
            try:
                version = new_version(1000 + number)
                object.__setattr__(version.manifest, "weights_size_bytes", each)
                store.create_version(ACME, AdapterName(f"bot{number}"), version, tag=LATEST, new_labels={}, tag_etag="")
            except TenantQuotaError as exc:
                refused.append(exc)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(run, stores))
    used = stored_use(engine, ACME).counts
    assert used == {ADAPTERS: most, VERSIONS: most, BYTES: most * each}
    assert len(refused) == 24 - most
    assert all(error.quota == kind and error.used == error.limit for error in refused)
    assert all(error.subject == ACME and error.retry_after_s is None for error in refused)


def test_a_refused_publication_changes_nothing(engine: Engine) -> None:
    it = catalog(engine, versions=1)
    publish(it, "bot", 1)
    before = it.get_adapter(ACME, AdapterName("bot")), it.revision(ACME)
    with pytest.raises(TenantQuotaError, match="may have 1 versions and has 1"):
        publish(it, "bot", 2)
    assert (it.get_adapter(ACME, AdapterName("bot")), it.revision(ACME)) == before
    # What is there already can be published again, and a tag be moved.
    publish(it, "bot", 1)


def test_deleting_frees_at_once(engine: Engine) -> None:
    it = catalog(engine, adapters=1, versions=1, bytes=10)
    publish(it, "bot", 10)
    it.delete_version(ACME, AdapterName("bot"), new_version(10).manifest.digest, force=True)
    publish(it, "bot", 9)
    it.delete_adapter(ACME, AdapterName("bot"), etag="", grace_s=1e6)
    publish(it, "other", 8)
    with pytest.raises(TenantQuotaError):
        it.undelete_adapter(ACME, AdapterName("bot"))
    it.delete_adapter(ACME, AdapterName("other"), etag="", grace_s=1e6)
    it.undelete_adapter(ACME, AdapterName("bot"))


def test_deleted_adapters_keep_as_much_again_and_no_more(engine: Engine) -> None:
    it = catalog(engine, bytes=10)
    publish(it, "one", 10)
    it.delete_adapter(ACME, AdapterName("one"), etag="", grace_s=1e6)
    publish(it, "two", 9)
    it.delete_adapter(ACME, AdapterName("two"), etag="", grace_s=1e6)
    with pytest.raises(TenantQuotaError, match="19 bytes more are kept of deleted adapters"):
        publish(it, "three", 8)


def test_a_blob_counts_once_for_a_tenant_and_in_full_whoever_else_has_it(engine: Engine) -> None:
    it = catalog(engine, bytes=10)
    publish(it, "bot", 10, OTHER)
    publish(it, "bot", 10)
    publish(it, "copy", 10)
    assert stored_use(engine, ACME).counts == {ADAPTERS: 2, VERSIONS: 2, BYTES: 10}
    with pytest.raises(TenantQuotaError):
        publish(it, "bot", 1)
    it.delete_adapter(ACME, AdapterName("copy"), etag="", grace_s=0)
    assert stored_use(engine, ACME).counts[BYTES] == 10


def test_a_tenant_beyond_a_lowered_limit_keeps_what_it_has(engine: Engine) -> None:
    for number in (1, 2, 3):
        publish(catalog(engine), f"bot{number}", number)
    it = catalog(engine, adapters=2, versions=2, bytes=2)
    it.set_tag(ACME, AdapterName("bot1"), TagName("prod"), new_version(1).manifest.digest, etag="")
    publish(it, "bot1", 1)
    with pytest.raises(TenantQuotaError):
        publish(it, "bot1", 7)
    it.delete_adapter(ACME, AdapterName("bot3"), etag="", grace_s=0)
