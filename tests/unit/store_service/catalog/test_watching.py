"""However many calls watch, one query at a time finds what came, and none is missed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from hotslot.contract.catalog import AdapterEventKind
from hotslot.errors import StoreUnavailableError
from hotslot.ids import AdapterName, TenantId
from store_service.catalog import watch as watch_module
from store_service.catalog.catalog import Catalog
from store_service.catalog.changes import changing
from store_service.catalog.database import open_database
from store_service.catalog.records import CatalogEvent
from store_service.catalog.watch import ChangeSignal, TenantWatches
from store_service.execution.offload import Offload
from tests.support.waiting import until

ACME = TenantId("acme")


class Watching:
    """A catalog that is watched, and counts its queries."""

    def __init__(self, engine: Engine, offload: Offload) -> None:
        self.engine = engine
        self.signal = ChangeSignal(asyncio.get_running_loop())
        self.watch = TenantWatches(Catalog(engine), engine, self.signal, offload)
        self.num_queries = 0
        self.seen: list[list[int]] = []
        self.tasks: list[asyncio.Task[None]] = []
        event.listen(engine, "before_cursor_execute", self._count)

    def _count(self, connection: Any, cursor: Any, statement: str, *_: object) -> None:
        self.num_queries += statement.lstrip().upper().startswith("SELECT")

    def begin(self, tenant: TenantId, revision: int = 0) -> asyncio.Task[None]:
        seen: list[int] = []
        note = seen.append
        self.seen.append(seen)

        async def follow() -> None:
            async with aclosing(self.watch.events(tenant, revision)) as events:
                async for each in events:
                    note(each.revision)

        self.tasks.append(asyncio.create_task(follow()))
        return self.tasks[-1]

    async def settled(self) -> None:
        """Wait until no watch reads."""
        await asyncio.sleep(0.01)
        await until(lambda: not self.watch._reads.keys())

    def write(self, tenant: TenantId, *, tells: bool) -> None:
        """A change by this process, or by another one that shares the database."""
        with changing(self.engine, tenant, self.signal.notify if tells else lambda tenant: None) as (_, change):
            change.add_event(AdapterEventKind.ADAPTER_DELETED, -1, AdapterName("bot"), None, None)


@asynccontextmanager
async def watched_catalog(folder: Path) -> AsyncIterator[Watching]:
    engine, offload = open_database(f"sqlite:///{folder / 'catalog.db'}"), Offload("test", 4)
    found = Watching(engine, offload)
    try:
        yield found
    finally:
        for task in found.tasks:
            task.cancel()
        await asyncio.gather(*found.tasks, return_exceptions=True)
        offload.close()
        engine.dispose()


@pytest.mark.parametrize("tells", [True, False])
async def test_a_change_reaches_every_watch_for_a_query_or_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tells: bool
) -> None:
    monkeypatch.setattr(watch_module, "EVERY_S", 0.1)
    async with watched_catalog(tmp_path) as found:
        found.write(ACME, tells=True)
        for _ in range(200):
            found.begin(ACME)
        await until(lambda: all(seen == [1] for seen in found.seen))
        await asyncio.sleep(0.3)
        before = found.num_queries
        found.write(ACME, tells=tells)
        await until(lambda: all(seen == [1, 2] for seen in found.seen))
        # Each read of events is two queries, the newest revisions are one; without sharing it would be hundreds.
        assert found.num_queries - before <= 20


async def test_watches_of_which_nothing_comes_cost_one_query_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "EVERY_S", 3600.0)
    async with watched_catalog(tmp_path) as found:
        for number in range(300):
            found.begin(TenantId(f"t{number}"))
        await until(lambda: len(found.signal.watched) == 300)
        await found.watch.look()
        await found.settled()
        before = found.num_queries
        for _ in range(3):
            await found.watch.look()
        await found.settled()
        assert found.num_queries - before == 3


async def test_what_nobody_watches_any_more_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "EVERY_S", 0.01)
    async with watched_catalog(tmp_path) as found:
        for number in range(3):
            found.begin(TenantId(f"t{number}"))
        await until(lambda: len(found.signal.watched) == 3)
        for task in found.tasks:
            task.cancel()
        await asyncio.gather(*found.tasks, return_exceptions=True)
        assert found.signal.watched == ()
        await found.settled()
        before = found.num_queries
        await asyncio.sleep(0.1)
        assert found.num_queries == before


async def test_a_catalog_that_cannot_be_read_ends_the_watches_that_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "EVERY_S", 0.05)
    async with watched_catalog(tmp_path) as found:
        watching = found.begin(ACME)
        await until(lambda: found.signal.watched == (ACME,))
        await asyncio.sleep(0.1)
        with found.engine.connect() as connection:
            connection.exec_driver_sql("DROP TABLE tenants")
            connection.commit()
        with pytest.raises(StoreUnavailableError):
            await asyncio.wait_for(watching, 60)


async def test_a_look_that_failed_is_begun_anew_with_the_next_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "EVERY_S", 0.01)
    async with watched_catalog(tmp_path) as found:
        look = found.watch.look

        async def fail() -> None:
            raise RuntimeError("a mistake of our own")

        monkeypatch.setattr(found.watch, "look", fail)
        found.begin(ACME)
        await until(lambda: found.watch._looking is not None and found.watch._looking.done())
        monkeypatch.setattr(found.watch, "look", look)
        found.begin(ACME)
        await until(lambda: found.signal.watched == (ACME,))
        found.write(ACME, tells=False)
        await until(lambda: all(seen == [1] for seen in found.seen))


async def test_announcements_wake_those_who_asked_and_the_newest_stay_where_one_is_slow(tmp_path: Path) -> None:
    async with watched_catalog(tmp_path) as found:
        found.write(ACME, tells=True)
        assert not found.signal.hears(ACME)
        heard: list[tuple[int, str]] = []
        note = heard.append

        async def follow() -> None:
            async with aclosing(found.watch.events(ACME, 0, announcements=True)) as events:
                async for each in events:
                    note((each.revision, each.adapter))

        found.tasks.append(asyncio.create_task(follow()))
        found.begin(ACME)
        await until(lambda: heard == [(1, "bot")] and found.seen == [[1]])
        assert found.signal.hears(ACME)
        assert not found.signal.hears(TenantId("another"))
        coming = [
            CatalogEvent(0, AdapterEventKind.VERSION_COMING, AdapterName(f"bot-{number}"), None, None, 0.0)
            for number in range(watch_module.MAX_ANNOUNCEMENTS + 3)
        ]
        found.signal.announce(ACME, coming)
        found.signal.announce(TenantId("another"), coming)
        await until(lambda: len(heard) == 1 + watch_module.MAX_ANNOUNCEMENTS)
        assert heard[1:] == [(0, event.adapter) for event in coming[3:]]
        found.write(ACME, tells=True)
        await until(lambda: heard[-1] == (2, "bot") and found.seen == [[1, 2]])
        found.tasks[0].cancel()
        await until(lambda: not found.signal.hears(ACME))


async def test_manifests_that_wait_for_a_watcher_that_sleeps_take_bounded_memory() -> None:
    signal = ChangeSignal(asyncio.get_running_loop())
    with signal.hearing(ACME) as heard:
        for number in range(20):
            manifest = b"m" * (watch_module.MAX_ANNOUNCED_BYTES // 4)
            name = AdapterName(f"bot-{number}")
            signal.announce(ACME, [CatalogEvent(0, AdapterEventKind.VERSION_COMING, name, None, None, 0.0, manifest)])
        await until(lambda: bool(heard) and heard[-1].adapter == "bot-19")
        assert [each.adapter for each in heard] == [f"bot-{number}" for number in range(16, 20)]
        huge = b"m" * (2 * watch_module.MAX_ANNOUNCED_BYTES)
        signal.announce(
            ACME, [CatalogEvent(0, AdapterEventKind.VERSION_COMING, AdapterName("huge"), None, None, 0.0, huge)]
        )
        await until(lambda: [each.adapter for each in heard] == ["huge"])
