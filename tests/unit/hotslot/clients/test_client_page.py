"""The code of docs/client.md runs, each block in a process of its own, against a store and a worker."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.hotslot.conftest import BASE, Served

PAGE = Path(__file__).resolve().parents[4] / "docs" / "client.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
# A block that defines an application is asked for something.
ASK = """
import asyncio
import httpx2 as httpx


async def _ask():
    async with app.router.lifespan_context(app) as state:
        async def with_state(scope, receive, send):
            await app({**scope, "state": dict(state)}, receive, send)

        transport = httpx.ASGITransport(app=with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for path in ("/answer", "/stream"):
                found = await client.get(path, params={"prompt": "Hello"})
                assert (found.status_code, found.text) == (200, "Hello, sailor"), found.text


asyncio.run(_ask())
"""


def title(block: str) -> str:
    """Title of the section that the block is in."""
    text = PAGE.read_text(encoding="utf-8")
    titles: list[str] = re.findall(r"^#+ (.*)$", text[: text.index(block)], re.MULTILINE)
    return titles[-1]


@pytest.mark.parametrize("block", BLOCKS, ids=title)
def test_the_code_of_the_page_runs(served: Served, tmp_path: Path, block: str) -> None:
    script = tmp_path / "block.py"
    script.write_text(block + (ASK if "app = " in block else ""), encoding="utf-8")
    served.store.add("second", BASE)
    store, worker = served.endpoints
    environment = {**os.environ, "HOTSLOT_STORE": store, "HOTSLOT_WORKER": worker}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_page_has_code_for_each_place_that_clients_live_in() -> None:
    assert {title(block) for block in BLOCKS} >= {
        "asyncio",
        "Starlette and FastAPI",
        "Notebooks",
        "Threads",
        "Prefork servers",
        "Deadlines and retries",
        "Errors",
    }
