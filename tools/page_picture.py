"""The picture of the gateway's page in README.md, from a real run: `python -m tools.page_picture` writes docs/page.png.

A store, two workers with the demo's model and adapters, and a gateway are started; the page is looked at in a real
Chromium while requests run, after a prompt was answered by the base model and two adapters.
"""

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx2
from playwright.async_api import Page, ViewportSize, expect

from deploy.demo.chat import ADAPTERS_DIR
from deploy.demo.deployment import WORKER_READY_S, deploy
from hotslot import BlockingStoreClient, BlockingWorkerClient
from hotslot.local.child_processes import free_port
from hotslot.local.children import Child, stop_all
from tools.chromium import running_chromium
from worker_service.demo_model import default_cache_dir, ensure_model

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "page.png"
ADAPTERS = ("butler", "french", "json", "pirate", "sentiment")
SHOWN = ("pirate", "french")
ASKED = ("butler", "french", "json")
"""Adapters of the requests beside: the others stay in the tiers that they were brought to."""
QUESTION = "What is the capital of France?"
SIZE: ViewportSize = {"width": 1240, "height": 900}
NUM_CLIENTS = 5
GRACE_S = 10.0
LOOK_MS = 240_000


def main() -> int:
    """Start everything, take the picture, stop everything."""
    with deploy(ensure_model(), default_cache_dir()) as deployment:
        spec = deployment.worker.spec
        endpoint = f"127.0.0.1:{free_port()}"
        deployment.worker.wait_ready(WORKER_READY_S)
        other = replace(spec, endpoint=endpoint, settings={**spec.settings, "HOTSLOT_LISTEN": endpoint})
        second = Child(replace(other, name="second", log_path=spec.log_path.with_name("second.log")))
        try:
            second.wait_ready(WORKER_READY_S)
            deployment.gateway.wait_ready(WORKER_READY_S)
            _spread(deployment.store.spec.endpoint, (spec.endpoint, endpoint))
            asyncio.run(_take(f"http://{deployment.gateway.spec.endpoint}"))
        finally:
            stop_all([second], GRACE_S)
    print(f"{PICTURE} is {PICTURE.stat().st_size:,} bytes")
    return 0


def _spread(store: str, workers: tuple[str, str]) -> None:
    """Push the adapters, and bring some of them into different tiers."""
    with BlockingStoreClient(store) as client:
        for name in ADAPTERS:
            client.push(ADAPTERS_DIR / name, name)
    with BlockingWorkerClient(workers[0]) as first, BlockingWorkerClient(workers[1]) as second:
        first.pin("pirate")
        second.load("json")
        second.load("pirate", host_only=True)
        first.load("sentiment", host_only=True)


async def _take(url: str) -> None:
    async with running_chromium() as browser, httpx2.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
        page = await browser.new_page(viewport=SIZE, device_scale_factor=1.5)
        await page.goto(f"{url}/ui")
        async with _loaded(http):
            await _answered(page)
            await expect(page.locator(".worker .chip.ready")).to_have_count(2)
            # A state that was read while requests ran, with rates of two states.
            running = page.locator("#figures div", has_text="Sequences running").locator("dd")
            await expect(running).not_to_have_text("0 of 16", timeout=LOOK_MS)
            await page.screenshot(path=PICTURE, full_page=True, animations="disabled")


async def _answered(page: Page) -> None:
    for column, name in zip(("first", "second"), SHOWN, strict=True):
        await page.locator(f"#model-{column}").fill(name)
    await page.locator("#prompt").fill(QUESTION)
    await page.locator("#max-tokens").fill("48")
    await page.locator("#run").click()
    await expect(page.locator(".facts", has_text="first token")).to_have_count(3, timeout=LOOK_MS)


@asynccontextmanager
async def _loaded(http: httpx2.AsyncClient) -> AsyncIterator[None]:
    """Requests of several clients until the block is left."""

    async def ask(seed: int) -> None:
        choice = random.Random(seed)
        while True:
            body = {"model": choice.choice(ASKED), "prompt": "The sea is", "max_tokens": choice.randint(16, 64)}
            (await http.post("/v1/completions", json=body)).raise_for_status()

    clients = [asyncio.create_task(ask(seed)) for seed in range(NUM_CLIENTS)]
    try:
        yield
    finally:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


if __name__ == "__main__":
    sys.exit(main())
