"""Following the catalog: from where it was asked, on from where it broke, and everything again after a gap."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

import pytest

from hotslot.backoff import Backoff
from hotslot.errors import HotslotError, RevisionCompactedError, StoreUnavailableError
from hotslot.ids import DEFAULT_TENANT, AdapterName, Digest, TagName, TenantId
from tests.support.waiting import until
from worker_service.adapters import catalog_watch
from worker_service.adapters.catalog_change import CatalogChange, ChangeKind
from worker_service.adapters.catalog_watch import CatalogWatch


def moved(revision: int) -> CatalogChange:
    return CatalogChange(revision, ChangeKind.TAG_MOVED, AdapterName("bot"), TagName("latest"), Digest("sha256:1"))


@dataclass
class FakeCatalog:
    """Both ends: the store's streams, and who is told."""

    queues: dict[TenantId, "asyncio.Queue[CatalogChange | HotslotError]"] = field(default_factory=dict)
    asked_from: list[tuple[TenantId, int]] = field(default_factory=list)
    heard: list[int] = field(default_factory=list)
    resyncs: int = 0
    revision: int = 50
    answer: HotslotError | None = None

    def queue(self, tenant: TenantId = DEFAULT_TENANT) -> "asyncio.Queue[CatalogChange | HotslotError]":
        return self.queues.setdefault(tenant, asyncio.Queue())

    async def watch(self, tenant: TenantId, after_revision: int) -> AsyncGenerator[CatalogChange | None, None]:
        self.asked_from.append((tenant, after_revision))
        yield None
        while True:
            item = await self.queue(tenant).get()
            if isinstance(item, HotslotError):
                raise item
            yield item

    def apply(self, tenant: TenantId, change: CatalogChange) -> None:
        self.heard.append(change.revision)

    async def resync(self, tenant: TenantId) -> int:
        self.resyncs += 1
        if self.answer is not None:
            raise self.answer
        return self.revision


@pytest.fixture
def catalog(monkeypatch: pytest.MonkeyPatch) -> FakeCatalog:
    monkeypatch.setattr(catalog_watch, "BACKOFF", Backoff(0.01, 15.0))
    return FakeCatalog()


@pytest.fixture
async def watch(catalog: FakeCatalog) -> AsyncIterator[CatalogWatch]:
    watch = CatalogWatch(catalog, max_tenants=2)
    running = asyncio.create_task(watch.run(catalog))
    yield watch
    running.cancel()
    await asyncio.wait([running])


async def test_it_follows_from_the_revision_of_the_first_answer(catalog: FakeCatalog, watch: CatalogWatch) -> None:
    watch.note(DEFAULT_TENANT, 7)
    watch.note(DEFAULT_TENANT, 9)
    catalog.queue().put_nowait(moved(8))
    await until(lambda: catalog.heard == [8])
    assert catalog.asked_from == [(DEFAULT_TENANT, 7)]
    assert watch.is_live(DEFAULT_TENANT)


async def test_it_goes_on_where_a_stream_broke(catalog: FakeCatalog, watch: CatalogWatch) -> None:
    watch.note(DEFAULT_TENANT, 7)
    for item in (moved(8), StoreUnavailableError("gone"), moved(9)):
        catalog.queue().put_nowait(item)
    await until(lambda: catalog.heard == [8, 9])
    assert [revision for _, revision in catalog.asked_from] == [7, 8]


async def test_a_gap_asks_for_everything_again_and_goes_on_from_there(
    catalog: FakeCatalog, watch: CatalogWatch
) -> None:
    watch.note(DEFAULT_TENANT, 7)
    for item in (RevisionCompactedError(7, 40), moved(51)):
        catalog.queue().put_nowait(item)
    await until(lambda: catalog.heard == [51])
    assert catalog.resyncs == 1
    assert [revision for _, revision in catalog.asked_from] == [7, 50]


async def test_after_a_gap_with_nothing_left_it_stops_until_something_is_asked_for(
    catalog: FakeCatalog, watch: CatalogWatch
) -> None:
    catalog.revision = 0
    watch.note(DEFAULT_TENANT, 7)
    catalog.queue().put_nowait(RevisionCompactedError(7, 40))
    await until(lambda: catalog.resyncs == 1 and not watch.is_live(DEFAULT_TENANT))
    watch.note(DEFAULT_TENANT, 60)
    await until(lambda: catalog.asked_from[-1] == (DEFAULT_TENANT, 60))


async def test_a_gap_is_closed_once_the_store_answers(catalog: FakeCatalog, watch: CatalogWatch) -> None:
    catalog.answer = StoreUnavailableError("away")
    watch.note(DEFAULT_TENANT, 7)
    catalog.queue().put_nowait(RevisionCompactedError(7, 40))
    await until(lambda: catalog.resyncs == 1)
    assert not watch.is_live(DEFAULT_TENANT)
    catalog.answer = None
    for item in (RevisionCompactedError(7, 40), moved(51)):
        catalog.queue().put_nowait(item)
    await until(lambda: catalog.heard == [51])


async def test_only_so_many_tenants_are_followed(catalog: FakeCatalog, watch: CatalogWatch) -> None:
    first, second, third = (TenantId(f"tenant-{number}") for number in range(3))
    for tenant in (first, second):
        watch.note(tenant, 1)
    await until(lambda: watch.is_live(first) and watch.is_live(second))
    watch.note(first, 2)
    watch.note(third, 1)
    await until(lambda: watch.is_live(third))
    assert watch.is_live(first)
    assert not watch.is_live(second)


async def test_hearers_are_told_after_the_follower_and_one_that_fails_costs_no_change_when_it_runs_again(
    catalog: FakeCatalog,
) -> None:
    watch = CatalogWatch(catalog)
    heard: list[tuple[int, list[int]]] = []

    def fail(tenant: TenantId, change: CatalogChange) -> None:
        raise RuntimeError("a bug")

    def hear(tenant: TenantId, change: CatalogChange) -> None:
        heard.append((change.revision, list(catalog.heard)))

    watch.note(DEFAULT_TENANT, 7)
    catalog.queue().put_nowait(moved(8))
    with pytest.raises(ExceptionGroup, match="TaskGroup"):
        await watch.run(catalog, fail)
    assert not watch.is_live(DEFAULT_TENANT)
    running = asyncio.create_task(watch.run(catalog, hear))
    catalog.queue().put_nowait(moved(9))
    await until(lambda: heard == [(9, [8, 9])])
    assert [revision for _, revision in catalog.asked_from] == [7, 8]
    running.cancel()
    await asyncio.wait([running])
