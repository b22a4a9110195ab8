"""Loads: shared, bounded, cancelled with the last who waits."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.contract.control import AdapterTier
from hotslot.errors import (
    HotslotError,
    InvalidAdapterError,
    QuotaExceededError,
    RankTooLargeError,
    StoreUnavailableError,
)
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import DEFAULT_TENANT, Digest, PartyId, TenantId, digest_of
from hotslot.references import parse_reference
from tests.support.echo_model import EchoDecoder
from tests.support.waiting import until
from worker_service.adapters.holdings import Holdings
from worker_service.adapters.host_shares import Kept, leaving
from worker_service.adapters.load_turns import LoadTurns
from worker_service.adapters.loader import Loader, LoaderLimits
from worker_service.adapters.version import AdapterVersion

OTHER_TENANT = TenantId("other")


def version(seed: int, *, rank: int = 8, size: int = 100, tenant: TenantId = DEFAULT_TENANT) -> AdapterVersion:
    weights = digest_of(f"weights {seed}".encode())
    manifest = Manifest(digest_of(b"base"), weights, size, "F32", (AdapterModule("q_proj", rank, 2.0),))
    return AdapterVersion(tenant, parse_reference("a"), manifest.digest, manifest)


DIGESTS = [version(seed).digest for seed in range(10)]


@dataclass
class Source:
    """Reads block until the test opens the gate; errors come from the list, one for each read."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    errors: list[HotslotError] = field(default_factory=list)
    reads: int = 0
    active: int = 0
    most_active: int = 0
    cancelled: int = 0

    async def read_blob(self, tenant: TenantId, digest: Digest, size_bytes: int) -> bytearray:
        self.reads += 1
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.active -= 1
        if self.errors:
            raise self.errors.pop(0)
        return bytearray(size_bytes)


@dataclass
class Rig:
    loader: Loader
    source: Source
    decoder: EchoDecoder
    holdings: Holdings
    now_s: float = 0.0


@pytest.fixture
async def make_rig() -> AsyncIterator[Callable[..., Rig]]:
    executor = ThreadPoolExecutor(2)
    rigs: list[Rig] = []

    def make(budget: int = 1_000, max_parallel: int = 4) -> Rig:
        source, decoder, holdings = Source(), EchoDecoder(), Holdings(budget)
        limits = LoaderLimits(max_parallel=max_parallel, failure_ttl_s=2.0)
        rig = Rig(Loader(source, decoder, holdings, limits, executor, lambda: rig.now_s), source, decoder, holdings)
        rigs.append(rig)
        return rig

    yield make
    for rig in rigs:
        rig.decoder.gate.set()
        await rig.loader.close()
        assert rig.holdings.used_bytes == sum(rig.holdings.of(digest).size_bytes for digest in DIGESTS)
    executor.shutdown()


MakeRig = Callable[..., Rig]


async def test_fifty_requests_for_one_cold_adapter_pull_it_once(make_rig: MakeRig) -> None:
    rig = make_rig()
    waiting = [asyncio.create_task(rig.loader.acquire(version(1))) for _ in range(50)]
    await until(lambda: rig.source.active == 1)
    assert rig.holdings.of(version(1).digest).tier(None, on_disk=False) is AdapterTier.LOADING
    rig.source.gate.set()
    weights = await asyncio.gather(*waiting)
    assert len({id(item) for item in weights}) == 1
    assert rig.source.reads == len(rig.decoder.decoded) == 1
    holding = rig.holdings.of(version(1).digest)
    assert holding.users == 50
    assert holding.tier(None, on_disk=False) is AdapterTier.HOST


async def test_what_is_resident_is_not_pulled_again(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.source.gate.set()
    for _ in range(3):
        await rig.loader.acquire(version(1))
    assert rig.source.reads == 1


async def test_what_another_tenant_brought_is_brought_once_more_and_kept_once(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.source.gate.set()
    first = await rig.loader.acquire(version(1))
    assert not rig.loader.is_at_hand(OTHER_TENANT, version(1).digest)
    size_bytes = rig.holdings.used_bytes
    for _ in range(3):
        assert await rig.loader.acquire(version(1, tenant=OTHER_TENANT)) is first
    assert rig.source.reads == 2, "its first request was answered from what another tenant has here"
    assert rig.holdings.used_bytes == size_bytes
    assert rig.loader.is_at_hand(OTHER_TENANT, version(1).digest)


async def test_a_tenant_that_loads_much_evicts_its_own(make_rig: MakeRig) -> None:
    rig = make_rig(budget=300)
    rig.source.gate.set()
    quiet = version(1, tenant=OTHER_TENANT)
    rig.holdings.note(quiet, 0.0)
    await rig.loader.acquire(quiet)
    rig.holdings.release(quiet.digest, quiet.tenant)
    for number in range(2, 30):
        loud = version(2 + number % 4)
        rig.holdings.note(loud, float(number))
        await rig.loader.acquire(loud)
        rig.holdings.release(loud.digest)
    assert rig.holdings.is_resident(quiet.digest)
    assert rig.holdings.used_bytes == 300


async def test_what_a_tenant_brings_and_never_uses_is_its_own_share_and_shown_to_no_other(make_rig: MakeRig) -> None:
    rig = make_rig(budget=400)
    rig.source.gate.set()
    quiet = [version(seed, tenant=OTHER_TENANT) for seed in (0, 1)]
    for each in quiet:
        rig.holdings.note(each, 0.0)
        await rig.loader.acquire(each)
        rig.holdings.release(each.digest, each.tenant)
    loud = TenantId("loud")
    for number in range(20):
        coming = version(2 + number % 4, tenant=loud)
        await rig.loader.acquire(coming)
        rig.holdings.release(coming.digest, loud)
        used = version(6 + number % 4, tenant=loud)
        rig.holdings.note(used, float(number))
        await rig.loader.acquire(used)
        rig.holdings.release(used.digest, loud)
    assert all(rig.holdings.is_resident(each.digest) for each in quiet), "half of the room was its share"
    told = rig.holdings.residency(4, lambda digest: 0.0, lambda ranks: 1)
    unnamed = [resident for resident in told if not resident.name]
    assert unnamed
    assert [resident.seen_by(DEFAULT_TENANT) for resident in told] == [None] * len(told)
    assert all(resident.seen_by(loud) is not None for resident in unnamed)


async def test_loads_of_many_wait_in_turns() -> None:
    turns, order = LoadTurns(1), []

    async def load(party: str, number: int) -> None:
        async with turns.turn(PartyId(party)):
            order.append((party, number))
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(load("loud", number)) for number in range(20)]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(load("quiet", number)) for number in range(2)]
    tasks[5].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order.index(("quiet", 0)) <= 3
    assert order.index(("quiet", 1)) <= 5
    assert len(order) == 21


@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from("ab"), st.booleans()), max_size=20),
    st.integers(1, 9),
    st.integers(1, 60),
)
def test_what_leaves_is_of_the_owner_that_has_most(found: list[tuple[int, str, bool]], size: int, needed: int) -> None:
    kept = [Kept(index, each[0], (each[1],), each[2]) for index, each in enumerate(found)]
    left = leaving(kept, ["new"], size, needed)
    able = [each for each in kept if each.may_leave]
    assert (left is None) is (sum(each.size_bytes for each in able) < needed)
    room = Counter({"new": size})
    for each in kept:
        room[found[each.key][1]] += each.size_bytes
    freed = 0
    for key in left or []:
        assert freed < needed, "more than was needed"
        victim = next(each for each in able if each.key == key)
        owners = {found[each.key][1] for each in able if each.key not in (left or [])[: (left or []).index(key)]}
        assert room[found[victim.key][1]] == max(room[owner] for owner in owners)
        room[found[victim.key][1]] -= victim.size_bytes
        freed += victim.size_bytes


async def test_one_that_goes_away_does_not_disturb_the_others(make_rig: MakeRig) -> None:
    rig = make_rig()
    waiting = [asyncio.create_task(rig.loader.acquire(version(1))) for _ in range(3)]
    await until(lambda: rig.source.active == 1)
    waiting[0].cancel()
    await until(waiting[0].done)
    rig.source.gate.set()
    await asyncio.gather(*waiting[1:])
    assert rig.source.cancelled == 0


async def test_the_last_that_goes_away_cancels_the_pull_and_the_next_begins_anew(make_rig: MakeRig) -> None:
    rig = make_rig()
    waiting = [asyncio.create_task(rig.loader.acquire(version(1))) for _ in range(3)]
    await until(lambda: rig.source.active == 1)
    for task in waiting:
        task.cancel()
    await until(lambda: rig.source.cancelled == 1)
    assert rig.holdings.used_bytes == 0
    rig.source.gate.set()
    await rig.loader.acquire(version(1))
    assert rig.source.reads == 2


async def test_memory_of_a_decoding_that_nobody_waits_for_counts_until_it_has_ended(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.source.gate.set()
    rig.decoder.gate.clear()
    waiting = asyncio.create_task(rig.loader.acquire(version(1)))
    await until(lambda: rig.decoder.entered == 1)
    waiting.cancel()
    await until(waiting.done)
    await asyncio.sleep(0.01)
    assert rig.holdings.used_bytes == 100
    rig.decoder.gate.set()
    await until(lambda: rig.holdings.used_bytes == 0)


async def test_a_failure_reaches_all_and_is_not_kept(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.source.errors = [StoreUnavailableError("gone")]
    waiting = [asyncio.create_task(rig.loader.acquire(version(1))) for _ in range(5)]
    await until(lambda: rig.source.active == 1)
    rig.source.gate.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailableError] * 5
    await rig.loader.acquire(version(1))


async def test_a_checkpoint_that_can_never_be_served_is_remembered_for_a_moment_only(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.source.gate.set()
    rig.decoder.refuse.add(version(1).digest)
    for _ in range(3):
        with pytest.raises(InvalidAdapterError, match="junk"):
            await rig.loader.acquire(version(1))
    assert rig.source.reads == 1
    rig.now_s = 2.5
    with pytest.raises(InvalidAdapterError):
        await rig.loader.acquire(version(1))
    assert rig.source.reads == 2


async def test_a_rank_too_large_is_refused_before_a_byte_is_pulled(make_rig: MakeRig) -> None:
    rig = make_rig()
    with pytest.raises(RankTooLargeError, match="HOTSLOT_MAX_RANK") as caught:
        await rig.loader.acquire(version(1, rank=17))
    assert caught.value.violations[0].subject == "q_proj"
    assert rig.source.reads == 0


async def test_loads_side_by_side_are_bounded(make_rig: MakeRig) -> None:
    rig = make_rig(max_parallel=2)
    waiting = [asyncio.create_task(rig.loader.acquire(version(seed))) for seed in range(6)]
    await until(lambda: rig.source.active == 2)
    rig.source.gate.set()
    await asyncio.gather(*waiting)
    assert rig.source.most_active == 2


async def test_memory_of_loads_under_way_counts_against_the_budget(make_rig: MakeRig) -> None:
    rig = make_rig(budget=250)
    waiting = [asyncio.create_task(rig.loader.acquire(version(seed))) for seed in range(2)]
    await until(lambda: rig.source.active == 2)
    with pytest.raises(QuotaExceededError):
        await rig.loader.acquire(version(3))
    rig.source.gate.set()
    await asyncio.gather(*waiting)


async def test_tenants_do_not_share_a_pull(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.source.errors = [StoreUnavailableError("not for you")]
    first = asyncio.create_task(rig.loader.acquire(version(1)))
    await until(lambda: rig.source.active == 1)
    second = asyncio.create_task(rig.loader.acquire(version(1, tenant=OTHER_TENANT)))
    await until(lambda: rig.source.active == 2)
    rig.source.gate.set()
    with pytest.raises(StoreUnavailableError):
        await first
    await second
