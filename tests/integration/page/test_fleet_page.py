"""The gateway's page before a fleet: what placement knows of all workers, and each worker's own reasons."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import expect

from hotslot import ChannelOptions, WorkerClient
from hotslot.local.embedded_valkey import embedded_valkey
from shared.settings import RedisUrl
from tests.integration.page.conftest import OpenPage
from tests.support.checkpoints import adapter
from tests.support.echo_model import echo_model
from tests.support.fleet import Member, fleet_of
from tests.support.gateway import open_gateway
from tests.support.store import open_store

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

SPEC = echo_model().spec
NAMES = ("one", "two", "three")
expect.set_options(timeout=30_000)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[str, list[Member]]]:
    """Address of a gateway, and the two workers behind it."""
    folder: Path = tmp_path_factory.mktemp("fleet")
    with embedded_valkey() as valkey:
        async with open_store(folder, redis_url=RedisUrl(valkey.url)) as store:
            await store.register(SPEC)
            for seed, name in enumerate(NAMES):
                await store.push(adapter(spec=SPEC, seed=seed), name, base_model=SPEC.digest)
            async with (
                fleet_of(2, store.endpoint, valkey.url) as members,
                open_gateway(store=store.endpoint) as gateway,
            ):
                yield f"http://127.0.0.1:{gateway.server.port}", members


async def test_each_adapter_is_shown_on_the_workers_that_hold_it(
    fleet: tuple[str, list[Member]], open_page: OpenPage
) -> None:
    url, members = fleet
    for name, at in (("one", members[:1]), ("two", members)):
        for member in at:
            async with WorkerClient(member.endpoint, ChannelOptions()) as worker:
                await worker.load(name)
    page = await open_page(f"{url}/ui")
    await expect(page.locator(".worker .chip.ready")).to_have_count(2)
    columns = await page.locator(".held thead th[title]").evaluate_all("cells => cells.map(cell => cell.title)")
    assert sorted(columns) == sorted(member.worker_id for member in members)
    for name, held in (("one", {members[0].worker_id}), ("two", set(columns))):
        cells = page.locator(".held tbody tr", has=page.locator(f'th[title^="{name}@"]')).locator("td")
        for column, worker_id in enumerate(columns):
            wanted = "in slots" if worker_id in held else "not there"
            await expect(cells.nth(column)).to_contain_text(wanted)
    assert await page.locator("#problems li").count() == 0
    await expect(page.locator("#figures")).to_contain_text("of 8")


async def test_a_drained_worker_of_a_fleet_says_why_and_the_fleet_goes_on(
    fleet: tuple[str, list[Member]], open_page: OpenPage
) -> None:
    url, members = fleet
    page = await open_page(f"{url}/ui")
    await expect(page.locator(".worker .chip.ready")).to_have_count(2)
    async with WorkerClient(members[1].endpoint, ChannelOptions()) as worker:
        await worker.drain(timeout_s=60)
    card = page.locator(f'.worker[data-worker="{members[1].worker_id}"]')
    await expect(card.locator(".reasons")).to_have_text("it was drained")
    await expect(page.locator("#problems li")).to_have_count(0)
    await page.locator("#run").click()
    await expect(page.locator(".facts", has_text="first token")).to_have_count(3)
    assert members[0].endpoint not in await page.content(), "addresses stay inside"
