"""A browser for each module, and pages of it that fail the test for whatever the browser complains of."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.support.programs import needed_program
from tools.chromium import PACKAGE, PROGRAM, running_chromium

OpenPage = Callable[..., Awaitable[Page]]
WIDE = {"width": 1280, "height": 900}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    needed_program(PACKAGE, PROGRAM)
    async with running_chromium() as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(browser: Browser) -> AsyncIterator[OpenPage]:
    """Opens an address in a context of its own; violations of its policy and errors of its code fail the test."""
    contexts, complaints = [], []

    async def opened(
        url: str,
        *,
        before: Callable[[Page], Awaitable[None]] | None = None,
        may_complain: bool = False,
        **options: object,
    ) -> Page:
        context = await browser.new_context(**{"viewport": WIDE, **options})  # type: ignore[arg-type]
        contexts.append(context)
        page = await context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        if not may_complain:
            page.on("console", lambda line: complaints.append(line.text) if "Content Security" in line.text else None)
        if before is not None:
            await before(page)
        await page.goto(url)
        return page

    yield opened
    for context in contexts:
        await context.close()
    assert complaints == []
