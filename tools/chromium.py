"""A real Chromium, as Debian packages it, driven by playwright."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Browser, async_playwright

from tools.debian_programs import debian_program

PACKAGE, PROGRAM = "chromium-headless-shell", "usr/lib/chromium/chromium-headless-shell"
START_MS = 60_000


@asynccontextmanager
async def running_chromium() -> AsyncIterator[Browser]:
    """A browser without a window, until the block is left; raises ProgramMissingError."""
    program = debian_program(PACKAGE, PROGRAM)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program.path,
            env={"HOME": "/tmp", **program.environment},
            args=["--no-proxy-server", "--disable-gpu"],
            timeout=START_MS,
        )
        try:
            yield browser
        finally:
            await browser.close()
