"""The gateway's page in a real Chromium, before one worker: it shows what is, and generates as one watches."""

import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio
from playwright.async_api import Page, expect

from gateway_service.live_state import HeldAdapter, LiveState, LiveWorker
from hotslot.formats.principals import Scope
from tests.integration.page.conftest import OpenPage
from tests.support.echo_model import echo_model, voice
from tests.support.gateway import Served, served
from tests.support.principals import Roster
from tests.support.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

NARROW = {"width": 320, "height": 700}
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>\'"&amp;'
expect.set_options(timeout=30_000)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with served(tmp_path_factory.mktemp("page"), echo_model(step_s=0.005)) as running:
        yield running


async def answers_of(page: Page) -> list[str]:
    """Texts of the three columns, once each has ended."""
    await expect(page.locator(".answer.running")).to_have_count(0)
    await expect(page.locator(".facts", has_text="first token")).to_have_count(3)
    return await page.locator(".answer .text").all_inner_texts()


async def test_an_adapter_appears_in_its_tier_when_it_is_loaded(stack: Served, open_page: OpenPage) -> None:
    page = await open_page(f"{stack.url}/ui")
    await expect(page.locator(".worker .chip")).to_have_text("ready")
    await expect(page.locator(".worker h3")).to_have_attribute("title", stack.worker.worker.worker_id)
    await expect(page.locator(".held")).to_contain_text("No adapter has been used here yet.")
    calls = await stack.worker.calls()
    await calls.load("bot")
    row = page.locator(".held tbody tr", has_text="bot")
    await expect(row.locator("td")).to_have_attribute("title", "in slots")
    await expect(page.locator("#figures")).to_contain_text("Slots taken")
    assert stack.digests["bot"].removeprefix("sha256:")[:8] in await row.inner_text()
    await page.locator("#filter").fill("nothing like it")
    await expect(page.locator(".held")).to_contain_text("No adapter has such a name.")


async def test_two_adapters_answer_beside_the_base_by_keyboard_alone(stack: Served, open_page: OpenPage) -> None:
    page = await open_page(f"{stack.url}/ui")
    await expect(page.locator("#model-second")).not_to_have_value("")
    named = [await page.locator(f"#model-{column}").input_value() for column in ("base", "first", "second")]
    assert named == ["test/echo", "bot", "other"]
    await page.keyboard.press("Tab")
    await expect(page.locator(".skip")).to_be_focused()
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await expect(page.locator("#prompt")).to_be_focused()
    await page.keyboard.press("Control+Enter")
    said = ["base", voice(stack.digests["bot"]), voice(stack.digests["other"])]
    assert await answers_of(page) == said
    assert stack.digests["other"].removeprefix("sha256:")[:8] in await page.locator(".facts").last.inner_text()


@pytest.mark.parametrize("way", ["escape", "leave"])
async def test_what_is_not_watched_any_more_is_not_generated(stack: Served, open_page: OpenPage, way: str) -> None:
    page = await open_page(f"{stack.url}/ui")
    await expect(page.locator("#model-second")).not_to_have_value("")
    await page.locator("#kind").select_option("text")
    await page.locator("#prompt").fill("endless")
    await page.locator("#max-tokens").fill("480")
    await page.locator("#run").click()
    await until(lambda: stack.worker.parts.engine.open_sequences == 3, 30)
    await expect(page.locator('[data-column="base"] .text')).to_contain_text("base")
    if way == "escape":
        await page.keyboard.press("Escape")
        await expect(page.locator(".facts", has_text="stopped")).to_have_count(3)
    else:
        await page.goto(f"{stack.url}/version")
    # Sooner than the answers would end by themselves.
    await until(lambda: stack.worker.parts.engine.open_sequences == 0, 60)


async def test_names_and_texts_are_never_html(stack: Served, open_page: OpenPage) -> None:
    """All that the gateway says is replaced by what would run code, where anything read it as HTML."""
    it = HOSTILE
    worker = LiveWorker(it, it, it, (it,), 1, 2, num_slots=2, free_slots=1, start_time=it, version=it, dtype=it)
    held = HeldAdapter(it, it, it, "slot", True, 1)
    state = asdict(LiveState("worker", it, "2026-01-01T00:00:00Z", (it,), it, (worker,), (held,), 1, 1))
    models = {"data": [{"id": it, "parent": None}, {"id": it, "parent": it}]}
    chunk = {"choices": [{"delta": {"content": it}, "finish_reason": None}]}

    async def replace(page: Page) -> None:
        await page.route("**/ui/state", lambda route: route.fulfill(json=state))
        await page.route("**/v1/models", lambda route: route.fulfill(json=models))
        stream = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
        await page.route("**/v1/chat/completions", lambda route: route.fulfill(body=stream))

    page = await open_page(f"{stack.url}/ui", before=replace)
    await expect(page.locator("#problems li")).to_have_text(HOSTILE)
    await page.locator("#run").click()
    await expect(page.locator('[data-column="first"] .text')).to_have_text(HOSTILE)
    assert await page.locator("img").count() == 1, "the mark beside the title"
    assert await page.locator("script").count() == 1
    assert await page.evaluate("window.hacked") is None


async def test_the_browser_runs_nothing_but_the_pages_own_files(stack: Served, open_page: OpenPage) -> None:
    page = await open_page(f"{stack.url}/ui", may_complain=True)
    written = "(() => { try { document.body.innerHTML = '<b>x</b>' } catch (e) { return e.name } })()"
    assert await page.evaluate(written) == "TypeError"
    blocked = await page.evaluate("""async () => {
        const told = new Promise((r) => addEventListener('securitypolicyviolation', (e) => r(e.effectiveDirective)));
        const outcome = await fetch('http://127.0.0.1:9/', {mode: 'no-cors'}).then(() => 'sent', () => 'refused');
        return [outcome, await told];
    }""")
    assert blocked == ["refused", "connect-src"]
    async with httpx2.AsyncClient(base_url=stack.url) as http:
        policy = (await http.get("/ui")).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


async def test_it_fits_a_narrow_screen_in_light_and_dark(stack: Served, open_page: OpenPage) -> None:
    papers = set()
    for scheme in ("light", "dark"):
        page = await open_page(f"{stack.url}/ui", viewport=NARROW, color_scheme=scheme)
        await expect(page.locator(".worker")).to_have_count(1)
        assert await page.evaluate("document.documentElement.scrollWidth") == NARROW["width"]
        papers.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(papers) == 2


async def test_a_worker_that_takes_no_requests_says_why(tmp_path: Path, open_page: OpenPage) -> None:
    async with served(tmp_path) as stack:
        page = await open_page(f"{stack.url}/ui")
        await expect(page.locator(".worker .chip")).to_have_text("ready")
        await stack.worker.worker.drain(5)
        await expect(page.locator(".worker .reasons")).to_have_text("it was drained")
        await expect(page.locator("#problems")).to_contain_text("no worker takes requests")
        stack.worker.worker.undrain()
        await expect(page.locator(".worker .chip")).to_have_text("ready")
        await expect(page.locator("#problems li")).to_have_count(0)
        await stack.worker.server.stop()
        await expect(page.locator(".worker .reasons")).to_contain_text("it does not answer")
        assert f":{stack.worker.server.port}" not in await page.content(), "addresses stay inside"


async def test_a_key_is_asked_for_and_kept_in_memory_alone(tmp_path: Path, open_page: OpenPage) -> None:
    roster = Roster(tmp_path / "principals.json")
    key = roster.add("alice", [Scope.READ, Scope.USE], ["default"])
    blind = roster.add("blind", [Scope.PUBLISH], ["default"])
    async with served(tmp_path, principals_file=roster.path) as stack:
        page = await open_page(f"{stack.url}/ui")
        await expect(page.locator("#key")).to_be_focused()
        await page.keyboard.type("hs1_wrong")
        await page.keyboard.press("Enter")
        await expect(page.locator("#key-why")).to_contain_text("The gateway says:")
        await expect(page.locator(".worker")).to_have_count(0)
        await expect(page.locator("#key")).to_be_focused()
        await page.keyboard.type(key)
        await page.keyboard.press("Enter")
        await expect(page.locator(".worker .chip")).to_have_text("ready")
        await page.locator("#run").click()
        assert (await answers_of(page))[1] == voice(stack.digests["bot"])
        kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
        assert key not in await page.evaluate(kept) + await page.content()
        assert await page.locator("#key").input_value() == ""
        await page.reload()
        await expect(page.locator("#key-dialog")).to_be_visible()
        async with httpx2.AsyncClient(base_url=stack.url) as http:
            headers = {"authorization": f"Bearer {key}", "hotslot-tenant": "another"}
            assert (await http.get("/ui/state", headers=headers)).status_code == 403
            assert (await http.get("/ui/state")).status_code == 401
            assert (await http.get("/ui/state", headers={"authorization": f"Bearer {blind}"})).status_code in (200, 403)


async def test_it_is_off_where_its_setting_says_so(tmp_path: Path) -> None:
    async with served(tmp_path, gateway_ui=False) as stack:
        http = await stack.http()
        for path in ("/ui", "/ui/files/page.js", "/ui/state"):
            answer = await http.get(path)
            assert (answer.status_code, "HOTSLOT_GATEWAY_UI" in answer.text) == (404, True)


async def test_no_other_file_is_served(stack: Served) -> None:
    http = await stack.http()
    for name in ("page.html", "page.js"):
        assert (await http.get(f"/ui/files/{name}")).status_code == 200
    for name in ("..%2froutes.py", "%2e%2e/routes.py", "routes.py", "x", "%00"):
        assert (await http.get(f"/ui/files/{name}")).status_code == 404, name
