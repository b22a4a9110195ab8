"""References to what another tenant shares: they follow the owner's catalog, and are not served for long on trust."""

from dataclasses import replace

import pytest

from hotslot.errors import AdapterNotFoundError, CatalogBehindError, StoreUnavailableError
from hotslot.ids import AdapterName, Digest, TagName, TenantId
from hotslot.references import parse_reference
from tests.unit.worker_service.adapters.test_references import FIRST, NAME, STALENESS_S, World
from worker_service.adapters.catalog_change import CatalogChange, ChangeKind, scopes_of
from worker_service.adapters.heard_changes import HeardChanges
from worker_service.adapters.known_reference import ReferenceLimits
from worker_service.adapters.references import ReferenceCache

OWNER, USER = TenantId("acme"), TenantId("other")
SHARED = parse_reference(f"acme~{NAME.name}")
UNCONFIRMED_S = 60.0


def sharing_world() -> World:
    return World(tags={(USER, SHARED): FIRST, (OWNER, NAME): FIRST})


def cache_of(world: World) -> ReferenceCache:
    limits = ReferenceLimits(STALENESS_S, patience_s=0.05, shared_unconfirmed_s=UNCONFIRMED_S)
    return ReferenceCache(world, world, limits, clock=lambda: world.now_s)


def change(kind: ChangeKind, revision: int = 7) -> CatalogChange:
    return CatalogChange(revision, kind, AdapterName(NAME.name), TagName(""), Digest(""))


async def test_a_shared_reference_hears_of_its_owners_changes_and_of_no_others() -> None:
    for kind in (ChangeKind.ADAPTER_UNSHARED, ChangeKind.ADAPTER_DELETED):
        world = sharing_world()
        cache = cache_of(world)
        assert (await cache.resolve_current(USER, SHARED)).digest == FIRST
        del world.tags[USER, SHARED]
        cache.apply(USER, change(kind))
        assert (await cache.resolve_current(USER, SHARED)).digest == FIRST
        cache.apply(OWNER, change(kind))
        with pytest.raises(AdapterNotFoundError):
            await cache.resolve_current(USER, SHARED)


async def test_an_end_of_a_share_does_not_concern_its_owner() -> None:
    world = sharing_world()
    cache = cache_of(world)
    await cache.resolve_current(OWNER, NAME)
    cache.apply(OWNER, change(ChangeKind.ADAPTER_UNSHARED))
    await cache.resolve_current(OWNER, NAME)
    assert world.questions == 1


async def test_a_resident_shared_adapter_is_refused_within_the_staleness_bound_without_any_event() -> None:
    world = sharing_world()
    cache = cache_of(world)
    await cache.resolve_current(USER, SHARED)
    del world.tags[USER, SHARED]
    world.now_s += STALENESS_S
    with pytest.raises(AdapterNotFoundError):
        await cache.resolve_current(USER, SHARED)


async def test_without_the_store_a_shared_adapter_is_served_for_a_bounded_time_and_an_own_one_on() -> None:
    world = sharing_world()
    cache = cache_of(world)
    await cache.resolve_current(USER, SHARED)
    await cache.resolve_current(OWNER, NAME)
    world.error = StoreUnavailableError("away")
    while (world.now_s + STALENESS_S) < UNCONFIRMED_S:
        world.now_s += STALENESS_S
        assert (await cache.resolve_current(USER, SHARED)).digest == FIRST
    world.now_s += STALENESS_S
    for _ in range(3):
        with pytest.raises(StoreUnavailableError):
            await cache.resolve_current(USER, SHARED)
        assert (await cache.resolve_current(OWNER, NAME)).digest == FIRST
        world.now_s += STALENESS_S
    world.error = None
    assert (await cache.resolve_current(USER, SHARED)).digest == FIRST


async def test_a_silent_store_is_not_taken_for_a_confirmation() -> None:
    world = sharing_world()
    cache = cache_of(world)
    await cache.resolve_current(USER, SHARED)
    world.answering.clear()
    world.now_s += STALENESS_S
    assert (await cache.resolve_current(USER, SHARED)).digest == FIRST
    world.now_s += UNCONFIRMED_S
    world.error = StoreUnavailableError("away")
    world.answering.set()
    with pytest.raises(StoreUnavailableError):
        await cache.resolve_current(USER, SHARED)
    await cache.close()


async def test_a_revision_is_of_the_callers_own_catalog_alone() -> None:
    world = sharing_world()
    cache = cache_of(world)
    assert (await cache.resolve_current(USER, SHARED, 99)).digest == FIRST
    assert (await cache.begin_flip(USER, SHARED, 99)).digest == FIRST
    with pytest.raises(CatalogBehindError):
        await cache.begin_flip(OWNER, NAME, 99)


def test_what_was_heard_of_an_adapter_holds_for_its_shared_name() -> None:
    heard = HeardChanges(3)
    assert scopes_of(SHARED) == scopes_of(NAME)
    heard.add(change(ChangeKind.ADAPTER_UNSHARED, 4))
    heard.add(replace(change(ChangeKind.TAG_MOVED, 5), adapter=AdapterName("another")))
    assert heard.held_until(SHARED, 3) == 3
    assert heard.held_until(SHARED, 4) == 5
