"""One line a call: who, what, how it ended and what it took, with the ids of its caller, and nothing of its prompt."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from hotslot import AdapterSelection, BlockingHotslotClient, ChannelOptions, GenerationRequest
from hotslot.contract.generation import Stop
from hotslot.errors import AdapterNotFoundError
from hotslot.ids import TenantId
from tests.support.checkpoints import adapter
from tests.support.echo_model import echo_model
from tests.support.prometheus import hold_soon
from tests.support.stack import Stack

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]

SPEC = echo_model().spec
TRACE = "0af7651916cd43dd8448eb211c80319c"
SECRET = "correct horse battery staple"
GENERATE = "/hotslot.worker.v1.InferenceService/Generate"
IDS = (("x-request-id", "from-caller-7"), ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"))


class Logged:
    """The processes of a deployment, whose logs are JSON lines."""

    def __init__(self, stack: Stack, folder: Path, digest: str) -> None:
        assert stack.store is not None
        self.store, self.worker, self.gateway = stack.store.spec.endpoint, stack.workers[0].spec.endpoint, stack.gateway
        self.digest = digest
        self._folder = folder

    def lines(self, process: str, event: str, **wanted: Any) -> list[dict[str, Any]]:
        text = (self._folder / f"{process}.log").read_text(encoding="utf-8")
        found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return [x for x in found if x["event"] == event and all(x.get(name) == v for name, v in wanted.items())]

    def line(self, process: str, event: str, **wanted: Any) -> dict[str, Any]:
        """The one line; it may come a moment after the answer."""
        hold_soon(lambda: bool(self.lines(process, event, **wanted)))
        (found,) = self.lines(process, event, **wanted)
        return found

    def text(self) -> str:
        return "".join(path.read_text(encoding="utf-8") for path in self._folder.glob("*.log"))


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    folder = tmp_path_factory.mktemp("logged")
    adapter(spec=SPEC, seed=1).write(folder / "draft")
    with pytest.MonkeyPatch.context() as patch, Stack(folder) as stack:
        # Each import is a line, too.
        patch.setenv("PYTHONPROFILEIMPORTTIME", "1")
        stack.start_store(log_format="json")
        stack.launch_echo_worker(log_format="json", slow_request_s="0.02", model="step 0.03").wait_ready(120)
        stack.start_gateway(log_format="json")
        options = ChannelOptions(tenant=TenantId("acme"))
        with BlockingHotslotClient(stack.store.spec.endpoint if stack.store else "", options=options) as client:
            digest = client.store.push(folder / "draft", "bot", base_model=SPEC.digest).version.digest
        yield Logged(stack, folder, digest)


def request(name: str, request_id: str = "", max_tokens: int = 3) -> GenerationRequest:
    stop = Stop(max_tokens=max_tokens, ignore_eos=True)
    return GenerationRequest(SECRET, (AdapterSelection(name),), stop=stop, request_id=request_id)


def test_a_generation_has_one_line_with_its_caller_adapter_tokens_and_ids(logged: Logged) -> None:
    options = ChannelOptions(tenant=TenantId("acme"), metadata=IDS)
    with BlockingHotslotClient(logged.store, logged.worker, route=False, options=options) as client:
        answer = client.complete(request("bot", "mine-1"))
    line = logged.line("worker-1", "rpc", method=GENERATE, request_id="mine-1")
    assert (line["tenant"], line["code"], line["digests"]) == ("acme", "OK", [logged.digest])
    assert line["prompt_tokens"] == answer.choices[0].finished.usage.prompt_tokens > 0
    assert line["answer_tokens"] == answer.choices[0].finished.usage.completion_tokens == 3
    assert line["trace_id"] == TRACE
    assert line["duration_ms"] > 0


def test_a_slow_request_has_a_line_with_its_stages(logged: Logged) -> None:
    options = ChannelOptions(tenant=TenantId("acme"))
    with BlockingHotslotClient(logged.store, logged.worker, route=False, options=options) as client:
        client.complete(request("bot", "slow-1", max_tokens=4))
    line = logged.line("worker-1", "slow_request", request_id="slow-1")
    assert (line["adapters"], line["digests"], line["answer_tokens"]) == (["bot:latest"], [logged.digest], 4)
    assert 0 <= line["load_s"] <= line["queue_s"] <= line["first_token_s"] < line["total_s"] <= line["duration_s"]
    assert "0.02" in line["why"]


def test_a_failure_has_its_reason_and_every_line_of_the_call_its_ids(logged: Logged) -> None:
    options = ChannelOptions(tenant=TenantId("acme"), metadata=IDS)
    with BlockingHotslotClient(logged.store, logged.worker, route=False, options=options) as client:
        with pytest.raises(AdapterNotFoundError):
            client.complete(request("absent", "mine-2"))
        list(client.store.list_adapters())
    line = logged.line("worker-1", "rpc", method=GENERATE, request_id="mine-2")
    assert (line["code"], line["reason"]) == ("NOT_FOUND", "ADAPTER_NOT_FOUND")
    listed = "/hotslot.store.v1.AdapterStoreService/ListAdapters"
    assert logged.line("store", "rpc", method=listed, request_id="from-caller-7")["trace_id"] == TRACE


def test_a_request_over_http_has_one_line_in_the_gateway(logged: Logged) -> None:
    headers = {"hotslot-tenant": "acme", **dict(IDS), "x-request-id": "http-1"}
    body = {"model": "bot", "prompt": SECRET, "max_tokens": 3}
    answer = httpx2.post(f"http://{logged.gateway}/v1/completions", json=body, headers=headers, trust_env=False)
    assert answer.status_code == 200
    line = logged.line("gateway", "request_served", request_id="http-1")
    assert (line["status"], line["model"], line["digests"]) == (200, "bot", [logged.digest])
    assert line["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert line["answer_tokens"] == answer.json()["usage"]["completion_tokens"]
    assert (line["trace_id"], line["method"]) == (TRACE, "POST")
    # The worker's line has the id that the gateway gave on.
    assert logged.line("worker-1", "rpc", method=GENERATE, request_id="http-1")["code"] == "OK"


def test_a_download_has_a_line_with_its_digest(logged: Logged) -> None:
    lines = logged.lines("store", "rpc", method="/hotslot.store.v1.BlobService/ReadBlob")
    assert lines
    assert all(len(line["digests"]) == 1 and line["request_id"] for line in lines)


def test_no_line_has_a_prompt_or_an_answer(logged: Logged) -> None:
    assert SECRET not in logged.text()
    assert "staple" not in logged.text()


def test_no_process_has_imported_the_sdk_of_opentelemetry_nor_its_spans(logged: Logged) -> None:
    imported = re.compile(r"^import time:.*\| +(opentelemetry\.(?:sdk|exporter|trace|proto)\S*)$", re.MULTILINE)
    text = logged.text()
    assert "import time:" in text
    # Tried by redis-py, and not found; what it is made of would follow.
    assert set(imported.findall(text)) <= {"opentelemetry.sdk.metrics"}
