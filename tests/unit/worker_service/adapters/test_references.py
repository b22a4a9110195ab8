"""What references stand for: trusted for a while, moved without a gap, kept when the store is away."""

import asyncio
import functools
from dataclasses import dataclass, field

import pytest

from hotslot.errors import AdapterNotFoundError, HotslotError, SlotsFullError, StoreUnavailableError
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import DEFAULT_TENANT, Digest, TagName, TenantId, digest_of
from hotslot.references import Reference, parse_reference
from shared.fleet.replica_policy import ReplicaPolicy
from tests.support.waiting import until
from worker_service.adapters.catalog_change import CatalogChange, ChangeKind
from worker_service.adapters.known_reference import ReferenceLimits
from worker_service.adapters.references import ReferenceCache
from worker_service.adapters.version import AdapterVersion

NAME = parse_reference("support-bot")
OTHER_TENANT = TenantId("other")
STALENESS_S = 2.0


def manifest(seed: int) -> Manifest:
    return Manifest(digest_of(b"base"), digest_of(str(seed).encode()), 10, "F32", (AdapterModule("q_proj", 8, 1.0),))


FIRST, SECOND, THIRD = (manifest(seed).digest for seed in (1, 2, 3))
MANIFESTS = {manifest(seed).digest: manifest(seed) for seed in (1, 2, 3)}


@dataclass
class World:
    """A store, what is resident, and a clock, all in the test's hands."""

    tags: dict[tuple[TenantId, Reference], Digest] = field(default_factory=lambda: {(DEFAULT_TENANT, NAME): FIRST})
    resident: set[Digest] = field(default_factory=lambda: {FIRST})
    error: HotslotError | None = None
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    preparing: asyncio.Event = field(default_factory=asyncio.Event)
    prepare_error: HotslotError | None = None
    now_s: float = 0.0
    questions: int = 0
    policy: ReplicaPolicy = field(default_factory=ReplicaPolicy)
    prepared: list[Digest] = field(default_factory=list)
    flips: list[tuple[Digest, Digest]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.answering.set()
        self.preparing.set()

    async def resolve(self, tenant: TenantId, reference: Reference) -> AdapterVersion:
        self.questions += 1
        await self.answering.wait()
        if self.error is not None:
            raise self.error
        if (tenant, reference) not in self.tags:
            raise AdapterNotFoundError(reference.name)
        digest = self.tags[tenant, reference]
        return AdapterVersion(tenant, reference, digest, MANIFESTS[digest], policy=self.policy)

    async def prepare(self, version: AdapterVersion) -> None:
        self.prepared.append(version.digest)
        await self.preparing.wait()
        if self.prepare_error is not None:
            raise self.prepare_error
        self.resident.add(version.digest)

    def is_resident(self, digest: Digest) -> bool:
        return digest in self.resident

    def moved(self, old: AdapterVersion, new: AdapterVersion) -> None:
        self.flips.append((old.digest, new.digest))

    def cache(self, max_entries: int = 10_000) -> ReferenceCache:
        limits = ReferenceLimits(STALENESS_S, patience_s=0.05, swap_retry_s=10.0, max_entries=max_entries)
        return ReferenceCache(self, self, limits, clock=lambda: self.now_s)


async def served(cache: ReferenceCache, tenant: TenantId = DEFAULT_TENANT) -> Digest:
    return (await cache.resolve_current(tenant, NAME)).digest


async def test_the_store_is_asked_once_in_the_time_that_its_answer_is_trusted() -> None:
    world = World()
    cache = world.cache()
    await asyncio.gather(*(served(cache) for _ in range(20)))
    world.now_s = STALENESS_S - 0.1
    assert await served(cache) == FIRST
    assert world.questions == 1
    world.now_s = STALENESS_S + 0.1
    assert await served(cache) == FIRST
    assert world.questions == 2


async def test_a_moved_tag_serves_the_old_version_until_the_new_one_is_ready_then_flips_at_once() -> None:
    world = World()
    cache = world.cache()
    await served(cache)
    world.tags[DEFAULT_TENANT, NAME] = SECOND
    world.preparing.clear()
    world.now_s = 3.0
    assert await served(cache) == FIRST
    await until(lambda: world.prepared == [SECOND])
    assert await served(cache) == FIRST
    world.preparing.set()
    await until(lambda: world.flips == [(FIRST, SECOND)])
    assert await served(cache) == SECOND


async def test_a_moved_tag_whose_old_version_is_not_here_flips_at_once() -> None:
    world = World()
    cache = world.cache()
    await served(cache)
    world.tags[DEFAULT_TENANT, NAME] = SECOND
    world.resident.clear()
    world.now_s = 3.0
    assert await served(cache) == SECOND
    assert world.prepared == []


async def test_a_swap_that_fails_keeps_the_old_version_and_is_not_tried_all_the_time() -> None:
    world = World()
    cache = world.cache()
    await served(cache)
    world.tags[DEFAULT_TENANT, NAME] = SECOND
    world.prepare_error = SlotsFullError("full", subject="slots")
    for now_s in (3.0, 6.0, 9.0):
        world.now_s = now_s
        assert await served(cache) == FIRST
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert world.prepared == [SECOND]
    world.prepare_error = None
    world.now_s = 14.0
    await served(cache)
    await until(lambda: world.flips == [(FIRST, SECOND)])


async def test_a_tag_that_moves_again_during_a_swap_ends_at_the_newest_version() -> None:
    world = World()
    cache = world.cache()
    await served(cache)
    world.preparing.clear()
    for now_s, digest in ((3.0, SECOND), (6.0, THIRD)):
        world.now_s, world.tags[DEFAULT_TENANT, NAME] = now_s, digest
        assert await served(cache) == FIRST
        await until(functools.partial(lambda wanted: world.prepared[-1:] == [wanted], digest))
    world.preparing.set()
    await until(lambda: bool(world.flips))
    assert world.flips == [(FIRST, THIRD)]


async def test_a_tag_that_moves_back_during_a_swap_stays_where_it_was() -> None:
    world = World()
    cache = world.cache()
    await served(cache)
    world.preparing.clear()
    for revision, digest in ((2, SECOND), (3, FIRST)):
        world.tags[DEFAULT_TENANT, NAME] = digest
        moved = CatalogChange(revision, ChangeKind.TAG_MOVED, NAME.name, TagName("latest"), digest)
        questions = world.questions
        cache.apply(DEFAULT_TENANT, moved)
        await until(functools.partial(lambda before: world.questions > before, questions))
        await until(lambda: world.prepared == [SECOND])
    world.preparing.set()
    await until(lambda: len(asyncio.all_tasks()) == 1)
    assert (await served(cache), world.flips) == (FIRST, [])


async def test_a_resident_version_is_served_while_the_store_is_away() -> None:
    world = World()
    cache = world.cache()
    await served(cache)
    world.error, world.now_s = StoreUnavailableError("away"), 3.0
    assert await served(cache) == FIRST
    assert await served(cache) == FIRST
    assert world.questions == 2, "it is not asked for every request"


async def test_a_version_that_is_not_here_is_not_served_while_the_store_is_away() -> None:
    world = World()
    cache = world.cache()
    await served(cache)
    world.resident.clear()
    world.error, world.now_s = StoreUnavailableError("away"), 3.0
    with pytest.raises(StoreUnavailableError):
        await served(cache)


async def test_a_store_that_does_not_answer_holds_up_a_resident_version_for_a_moment_only() -> None:
    world = World()
    cache = world.cache()
    await served(cache)
    world.now_s = 3.0
    world.answering.clear()
    assert await served(cache) == FIRST
    world.answering.set()
    await cache.close()


async def test_what_was_deleted_is_not_served_any_more() -> None:
    world = World()
    cache = world.cache()
    await served(cache)
    world.tags.clear()
    world.now_s = 3.0
    with pytest.raises(AdapterNotFoundError):
        await served(cache)
    world.error = StoreUnavailableError("away")
    with pytest.raises(StoreUnavailableError):
        await served(cache)


async def test_a_resident_version_is_not_found_for_another_tenant() -> None:
    world = World()
    cache = world.cache()
    await served(cache)
    with pytest.raises(AdapterNotFoundError):
        await served(cache, OTHER_TENANT)


async def test_a_caller_that_goes_away_leaves_the_question_to_the_others() -> None:
    world = World()
    cache = world.cache()
    world.answering.clear()
    first, second = (asyncio.create_task(served(cache)) for _ in range(2))
    await until(lambda: world.questions == 1)
    first.cancel()
    world.answering.set()
    assert await second == FIRST
    assert world.questions == 1


async def test_an_explicit_flip_ends_the_swap_under_way() -> None:
    world = World()
    cache = world.cache()
    await served(cache)
    world.tags[DEFAULT_TENANT, NAME] = SECOND
    world.preparing.clear()
    world.now_s = 3.0
    await served(cache)
    previous = cache.flip(AdapterVersion(DEFAULT_TENANT, NAME, THIRD, MANIFESTS[THIRD]))
    world.preparing.set()
    await asyncio.sleep(0.01)
    assert previous is not None
    assert previous.digest == FIRST
    assert await served(cache) == THIRD


async def test_the_cache_is_bounded() -> None:
    world = World()
    references = [parse_reference(f"a{index}") for index in range(20)]
    world.tags = {(DEFAULT_TENANT, reference): FIRST for reference in references}
    cache = world.cache(max_entries=5)
    for reference in references:
        await cache.resolve_current(DEFAULT_TENANT, reference)
    kept = [reference for reference in references if cache.resolve_known(DEFAULT_TENANT, reference) is not None]
    assert kept == references[-5:]
    await cache.close()


async def test_a_changed_policy_is_asked_for_and_the_version_goes_on_serving() -> None:
    world = World()
    cache = world.cache()
    assert (await cache.resolve_current(DEFAULT_TENANT, NAME)).policy == ReplicaPolicy()
    world.policy = ReplicaPolicy(2, 3, pinned=True)
    changed = CatalogChange(2, ChangeKind.POLICY_CHANGED, NAME.name, TagName(""), Digest(""))
    cache.apply(DEFAULT_TENANT, changed)
    assert cache.resolve_known(DEFAULT_TENANT, NAME) is not None
    await until(
        lambda: (known := cache.resolve_known(DEFAULT_TENANT, NAME)) is not None and known.policy == world.policy
    )
    assert (world.questions, world.flips) == (2, [])


async def test_what_is_known_does_not_wait_and_asks_for_what_is_not() -> None:
    world = World()
    cache = world.cache()
    assert cache.resolve_known(DEFAULT_TENANT, NAME) is None
    await until(lambda: cache.resolve_known(DEFAULT_TENANT, NAME) is not None)
    assert world.questions == 1
