"""Floods of HTTP requests, with a key or without: refused late, and others are served meanwhile."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from hotslot.formats.principals import Scope
from shared.server import late_refusals
from tests.support.gateway import served
from tests.support.one_moment import one_moment
from tests.support.principals import Roster

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("kind", ["a key", "no key", "guessed keys"])
async def test_a_flood_of_requests_is_refused_late_while_others_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(late_refusals, "HEARS_AFTER_S", 0.5)
    roster = Roster(tmp_path / "principals.json")
    for name in ("quiet", "loud"):
        roster.add(name, (Scope.READ,), ("default",))
    settings: dict[str, Any] = {
        "principals_file": roster.path,
        "gateway_max_calls_per_s": 20.0,
        "gateway_anonymous_scopes": ("read",),
    }
    async with served(tmp_path, **settings) as it:
        http = await it.http()

        async def status(key: str) -> tuple[int, float, str | None]:
            began_s = time.monotonic()
            headers = {"authorization": f"Bearer {key}"} if key else {}
            answer = await http.get("/v1/models", headers=headers)
            return answer.status_code, time.monotonic() - began_s, answer.headers.get("retry-after")

        def key(number: int) -> str:
            return {"a key": roster.tokens["loud"], "no key": ""}.get(kind, f"hs1_00112233445566{number:02}_0123")

        with one_moment():
            flooding = asyncio.gather(*(status(key(number)) for number in range(60)))
            assert (await status(roster.tokens["quiet"]))[0] == 200
            found = await flooding
        usual = 401 if kind == "guessed keys" else 200
        assert {code for code, *_ in found} == {usual, 429}
        assert all(took_s >= 0.4 and retry_after for code, took_s, retry_after in found if code == 429)
        assert (await status(roster.tokens["quiet"]))[0] == 200
