"""Pins that come and go beside each other: what was acknowledged keeps its slots."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from hotslot.errors import SlotsFullError, StoreUnavailableError
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import DEFAULT_TENANT, Digest, TenantId, digest_of
from hotslot.references import Reference, parse_reference
from tests.support.echo_model import EchoDecoder
from tests.support.engine_bench import small_limits
from tests.support.fake_model import FakeAdapter
from tests.support.waiting import until
from worker_service.adapters.holdings import Holdings
from worker_service.adapters.loader import Loader, LoaderLimits
from worker_service.adapters.tiers import AdapterTiers
from worker_service.adapters.version import AdapterVersion
from worker_service.engine.messages import Activated, AdapterWeights
from worker_service.engine.snapshot import EngineSnapshot

MANIFEST = Manifest(digest_of(b"base"), digest_of(b"weights"), 10, "F32", (AdapterModule("q_proj", 8, 2.0),))
WEIGHTS = FakeAdapter(MANIFEST.digest)


@dataclass
class Slots:
    """Answers activations when and as the test says."""

    asked: list["asyncio.Future[Activated]"] = field(default_factory=list)
    unpinned: list[Digest] = field(default_factory=list)

    async def activate(self, weights: AdapterWeights, *, pin: bool) -> Activated:
        self.asked.append(asyncio.get_running_loop().create_future())
        return await self.asked[-1]

    async def deactivate(self, digest: Digest) -> None:
        raise AssertionError("not part of this")

    def unpin(self, digest: Digest) -> None:
        self.unpinned.append(digest)

    async def inspect(self) -> EngineSnapshot:
        raise AssertionError("not part of this")

    def grant(self, index: int) -> None:
        self.asked[index].set_result(Activated(WEIGHTS.digest, (0,), True, 0.0, 0.0))


class NoStore:
    async def resolve(self, tenant: TenantId, reference: Reference) -> AdapterVersion:
        raise StoreUnavailableError("away")

    async def read_blob(self, tenant: TenantId, digest: Digest, size_bytes: int) -> bytes:
        return bytes(size_bytes)


@dataclass
class Rig:
    """Tiers whose only version is in host memory."""

    slots: Slots
    tiers: AdapterTiers

    async def pin(self, name: str) -> None:
        """As the control does it."""
        await self.tiers.activate(WEIGHTS, pin=True)
        self.tiers.pin(version(name))


def version(name: str) -> AdapterVersion:
    return AdapterVersion(DEFAULT_TENANT, parse_reference(name), MANIFEST.digest, MANIFEST)


@pytest.fixture
async def rig() -> Rig:
    slots, store = Slots(), NoStore()
    holdings = Holdings(1_000)
    loader = Loader(store, EchoDecoder(), holdings, LoaderLimits(), ThreadPoolExecutor(1))
    await loader.acquire(version("one"))
    return Rig(slots, AdapterTiers(holdings, loader, slots, small_limits()))


async def test_a_pin_that_is_cancelled_takes_nothing_from_one_under_way(rig: Rig) -> None:
    cancelled, other = asyncio.create_task(rig.pin("one")), asyncio.create_task(rig.pin("two"))
    await until(lambda: len(rig.slots.asked) == 2)
    cancelled.cancel()
    await until(cancelled.done)
    rig.slots.grant(1)
    await other
    assert rig.slots.unpinned == []
    rig.tiers.unpin(version("two"))
    assert rig.slots.unpinned == [MANIFEST.digest]


async def test_the_end_of_the_last_pin_takes_nothing_from_one_under_way(rig: Rig) -> None:
    first, second = asyncio.create_task(rig.pin("one")), asyncio.create_task(rig.pin("two"))
    await until(lambda: len(rig.slots.asked) == 2)
    rig.slots.grant(0)
    await first
    rig.tiers.unpin(version("one"))
    rig.slots.grant(1)
    await second
    assert rig.slots.unpinned == []


async def test_when_all_that_would_pin_have_failed_the_slots_are_told(rig: Rig) -> None:
    first, second = asyncio.create_task(rig.pin("one")), asyncio.create_task(rig.pin("two"))
    await until(lambda: len(rig.slots.asked) == 2)
    first.cancel()
    rig.slots.asked[1].set_exception(SlotsFullError("full", subject="slots"))
    await asyncio.wait([first, second])
    assert isinstance(second.exception(), SlotsFullError)
    assert rig.slots.unpinned == [MANIFEST.digest]
