"""Workers that are full, away or failing: statuses, when to try again, and that the SDK does; and the gateway's end."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import httpx2
import openai
import pytest
from structlog.testing import capture_logs

from hotslot.errors import EngineFailedError
from hotslot.local.child_processes import free_port
from hotslot.local.embedded_valkey import embedded_valkey
from tests.support.checkpoints import adapter
from tests.support.echo_model import UNHURRIED_STEP_S, echo_model, voice
from tests.support.fleet import fleet_of
from tests.support.gateway import Served, open_gateway, served
from tests.support.store import open_store
from tests.support.waiting import until

pytestmark = pytest.mark.integration

BASE = "test/echo"


async def test_a_full_worker_is_429_and_the_sdk_tries_again_when_told(tmp_path: Path) -> None:
    async with served(tmp_path, echo_model(max_running=1, max_waiting=0, step_s=UNHURRIED_STEP_S)) as stack:
        sdk = await stack.sdk()
        first = asyncio.create_task(sdk.completions.create(model=BASE, prompt="endless", max_tokens=100))
        await until(lambda: stack.worker.parts.engine.open_sequences == 1)
        with pytest.raises(openai.RateLimitError) as refused:
            await sdk.completions.create(model=BASE, prompt="hello", max_tokens=8)
        assert refused.value.code == "QUEUE_FULL"
        assert int(refused.value.response.headers["retry-after"]) >= 1
        assert refused.value.response.headers["x-should-retry"] == "true"
        patient = await stack.sdk(max_retries=10)
        with capture_logs() as logs:
            asking = asyncio.create_task(patient.completions.create(model=BASE, prompt="hello"))
            await until(lambda: any(line.get("status") == 429 for line in logs))
        stack.model.runner.step_s = 0.0
        assert (await asking).choices[0].text == "base"
        assert (await first).choices[0].text == "base" * 25


async def test_the_gateways_own_places_are_bounded(tmp_path: Path) -> None:
    async with served(tmp_path, gateway_max_requests=1) as stack:
        stack.model.runner.gate.clear()
        sdk = await stack.sdk()
        first = asyncio.create_task(sdk.completions.create(model=BASE, prompt="hello", max_tokens=8))
        await until(lambda: stack.worker.parts.engine.open_sequences == 1)
        with pytest.raises(openai.RateLimitError) as refused:
            await sdk.completions.create(model=BASE, prompt="hello")
        assert refused.value.code == "QUOTA_EXCEEDED"
        stack.model.runner.gate.set()
        await first
        assert (await sdk.completions.create(model=BASE, prompt="hello")).choices[0].text == "base"


async def test_a_worker_that_is_away_is_503_and_its_address_stays_inside(tmp_path: Path) -> None:
    port = free_port()
    async with (
        open_store(tmp_path / "store") as store,
        open_gateway(gateway_worker=f"127.0.0.1:{port}", store=store.endpoint) as gateway,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{gateway.server.port}") as http,
    ):
        for answer in (
            await http.post("/v1/completions", json={"model": "bot", "prompt": "hello"}),
            await http.get("/v1/models"),
            await http.get("/health"),
        ):
            assert answer.status_code == 503, answer.text
            assert str(port) not in answer.text
            assert int(answer.headers["retry-after"]) >= 1
        assert (await http.get("/health/live")).status_code == 200


async def test_a_fleet_without_workers_is_503(tmp_path: Path) -> None:
    with embedded_valkey() as valkey:
        async with (
            open_store(tmp_path / "store", redis_url=valkey.url) as store,
            open_gateway(store=store.endpoint) as gateway,
            httpx2.AsyncClient(base_url=f"http://127.0.0.1:{gateway.server.port}", timeout=120) as http,
        ):
            for answer in (
                await http.post("/v1/completions", json={"model": "Some/Base", "prompt": "hello"}),
                await http.get("/v1/models"),
                await http.get("/health"),
            ):
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "NO_WORKERS")


async def test_a_stream_that_fails_after_its_first_token_says_so(tmp_path: Path) -> None:
    async with served(tmp_path, echo_model(step_s=UNHURRIED_STEP_S)) as stack:
        sdk = await stack.sdk()
        stream = await sdk.completions.create(model="bot", prompt="endless", max_tokens=400, stream=True)
        assert (await anext(aiter(stream))).choices[0].text
        stack.worker.parts.engine.fail_all(EngineFailedError("the engine at 10.0.0.7 ended"))
        with pytest.raises(openai.APIError) as failed:
            _ = [chunk async for chunk in stream]
        assert failed.value.code == "ENGINE_FAILED"
        assert "10.0.0.7" not in failed.value.message


async def test_a_fleet_serves_by_its_best_worker_and_survives_a_drained_one(tmp_path: Path) -> None:
    spec = echo_model().spec
    with embedded_valkey() as valkey:
        async with (
            open_store(tmp_path / "store", redis_url=valkey.url) as store,
            fleet_of(2, store.endpoint, valkey.url) as members,
            open_gateway(store=store.endpoint) as gateway,
        ):
            await store.register(spec)
            digest = (await store.push(adapter(spec=spec), "bot", base_model=spec.digest)).digest
            url = f"http://127.0.0.1:{gateway.server.port}"
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
                assert [model.id async for model in sdk.models.list()] == [BASE, "bot"]
                raw = await sdk.completions.with_raw_response.create(model="bot", prompt="hello", max_tokens=64)
                assert raw.parse().choices[0].text == voice(digest)
                first = raw.headers["hotslot-worker"]
                for _ in range(3):
                    raw = await sdk.completions.with_raw_response.create(model="bot", prompt="hello")
                    assert raw.headers["hotslot-worker"] == first, "it has the adapter"
                (gone,) = (member for member in members if member.worker_id == first)
                await gone.worker.drain(5.0)
                raw = await sdk.completions.with_raw_response.create(model="bot", prompt="hello")
                assert raw.headers["hotslot-worker"] != first
                base = await sdk.completions.create(model=BASE, prompt="hello")
                assert base.choices[0].text == "base"


async def test_loading_and_unloading_are_vllms(tmp_path: Path) -> None:
    async with served(tmp_path) as stack:
        http = await stack.http()
        loaded = await http.post("/v1/load_lora_adapter", json={"lora_name": "bot", "lora_path": "bot"})
        assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'bot' added successfully.")
        held = await (await stack.worker.calls()).list()
        assert [entry.digest for entry in held] == [stack.digests["bot"]]
        by_tag = {"lora_name": "bot:blue", "lora_path": f"bot@{stack.digests['bot']}"}
        assert (await http.post("/v1/load_lora_adapter", json=by_tag)).status_code == 200
        sdk = await stack.sdk()
        answer = await sdk.completions.create(model="bot:blue", prompt="hello", max_tokens=64)
        assert answer.choices[0].text == voice(stack.digests["bot"])
        unloaded = await http.post("/v1/unload_lora_adapter", json={"lora_name": "bot"})
        assert unloaded.text == "Success: LoRA adapter 'bot' removed successfully."
        again = await http.post("/v1/unload_lora_adapter", json={"lora_name": "bot"})
        assert (again.status_code, again.json()["error"]["code"]) == (404, "ADAPTER_NOT_LOADED")


async def test_loading_is_off_unless_it_is_turned_on(tmp_path: Path) -> None:
    async with served(tmp_path, gateway_lora_updates=False) as stack:
        http = await stack.http()
        for path in ("load", "unload"):
            answer = await http.post(f"/v1/{path}_lora_adapter", json={"lora_name": "bot", "lora_path": "bot"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "FORBIDDEN")


async def start(worker: str, port: int, **settings: str) -> asyncio.subprocess.Process:
    environment = {
        **os.environ,
        "HOTSLOT_GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "HOTSLOT_GATEWAY_WORKER": worker,
        **settings,
    }
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway_service", env=environment, stderr=asyncio.subprocess.PIPE
    )


async def ready(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    async with asyncio.timeout(90):
        async for line in process.stderr:
            if b"ready" in line:
                return
    raise AssertionError("it ended before it was ready")


async def _stopped(stack: Served, grace_s: str, max_tokens: int) -> tuple[str, str | None]:
    """Text and failure of a stream that runs when the gateway's process is told to end."""
    port = free_port()
    worker = f"127.0.0.1:{stack.worker.server.port}"
    process = await start(worker, port, HOTSLOT_GRACE_S=grace_s)
    try:
        await ready(process)
        text, code = "", None
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as sdk:
            stream = await sdk.completions.create(model=BASE, prompt="endless", max_tokens=max_tokens, stream=True)
            try:
                async for chunk in stream:
                    if not text:
                        process.send_signal(signal.SIGTERM)
                    text += chunk.choices[0].text
            except openai.APIError as exc:
                code = exc.code
        assert await asyncio.wait_for(process.wait(), 60) == 0
        return text, code
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_gateway_that_stops_lets_streams_end(tmp_path: Path) -> None:
    async with served(tmp_path, echo_model(step_s=0.02)) as stack:
        assert await _stopped(stack, "10", 40) == ("base" * 10, None)


async def test_a_stream_that_outlasts_the_grace_is_told(tmp_path: Path) -> None:
    async with served(tmp_path, echo_model(step_s=UNHURRIED_STEP_S)) as stack:
        text, code = await _stopped(stack, "1", 400)
        assert text
        assert code == "DRAINING"
        await until(lambda: stack.worker.parts.engine.open_sequences == 0)


@pytest.mark.parametrize(
    ("settings", "exit_code", "reason"),
    [
        ({"HOTSLOT_GATEWAY_WORKER": ""}, 2, b"HOTSLOT_STORE"),
        ({"HOTSLOT_GATEWAY_LISTEN": "nowhere"}, 2, b"HOTSLOT_GATEWAY_LISTEN"),
        ({"HOTSLOT_GATEWAY_LISTEN": "192.0.2.1:80"}, 2, b"HOTSLOT_INSECURE"),
        ({"HOTSLOT_GATEWAY_LISTEN": "192.0.2.1:80", "HOTSLOT_INSECURE": "true"}, 1, b"cannot start"),
    ],
)
async def test_a_gateway_that_cannot_start_says_why(settings: dict[str, str], exit_code: int, reason: bytes) -> None:
    process = await start("127.0.0.1:1", free_port(), **settings)
    _, errors = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode == exit_code
    assert reason in errors.strip().splitlines()[-1] or reason in errors
    assert b"Traceback" not in errors
