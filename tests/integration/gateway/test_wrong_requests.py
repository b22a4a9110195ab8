"""Wrong requests: each has a status, a code and a parameter of its own, and none fails inside."""

import json
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from tests.support.gateway import Served

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BASE = "test/echo"
USER = {"role": "user", "content": "hello"}


@dataclass(frozen=True)
class Wrong:
    """One wrong request and what it gets."""

    name: str
    path: str
    body: Any
    """A dict is on top of a sound body; bytes are sent as they are."""
    code: str = "INVALID_REQUEST"
    param: str | None = None
    status: int = 400
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"


def chat(name: str, param: str, code: str = "INVALID_REQUEST", status: int = 400, /, **body: Any) -> Wrong:
    return Wrong(name, CHAT, body, code, param, status)


def text(name: str, param: str, code: str = "INVALID_REQUEST", status: int = 400, /, **body: Any) -> Wrong:
    return Wrong(name, TEXT, body, code, param, status)


def turn(**fields: Any) -> list[Any]:
    return [{**USER, **fields}]


WRONG = (
    Wrong("no JSON", CHAT, b"{", "MALFORMED_JSON"),
    Wrong("nothing", CHAT, b"", "MALFORMED_JSON"),
    Wrong("a list", CHAT, b"[]", "MALFORMED_JSON"),
    Wrong("a key twice", CHAT, b'{"model": "bot", "model": "other"}', "MALFORMED_JSON"),
    Wrong("NaN", CHAT, b'{"model": "bot", "temperature": NaN}', "MALFORMED_JSON"),
    Wrong("a number without end", CHAT, b'{"seed": ' + b"9" * 5000 + b"}", "MALFORMED_JSON"),
    Wrong("nesting without end", CHAT, b'{"a": ' + b"[" * 50_000, "MALFORMED_JSON"),
    Wrong("half a surrogate", CHAT, b'{"model": "\\ud800"}', "MALFORMED_JSON"),
    Wrong("bytes that are no UTF-8", CHAT, b'{"model": "\xff"}', "MALFORMED_JSON"),
    Wrong("a form", CHAT, b"model=bot", "UNSUPPORTED_MEDIA_TYPE", status=415, headers={"content-type": "text/plain"}),
    Wrong("five MiB", TEXT, {"prompt": "x" * 5 * 2**20}, "BODY_TOO_LARGE", status=413),
    chat("no model", "model", model=...),
    chat("a model that is a number", "model", model=3),
    chat("an unknown model", "model", "ADAPTER_NOT_FOUND", 404, model="nobody"),
    chat("a model that is no reference", "model", "MODEL_NOT_FOUND", 404, model="No Such/Model!"),
    chat("an empty model", "model", "MODEL_NOT_FOUND", 404, model=""),
    chat("an unknown version", "model", "VERSION_NOT_FOUND", 404, model="bot@sha256:" + "0" * 64),
    chat("a model like a path", "model", "MODEL_NOT_FOUND", 404, model="../../etc/passwd"),
    chat("a model without end", "model", "MODEL_NOT_FOUND", 404, model="a" * 100_000),
    chat("no messages", "messages", messages=...),
    chat("empty messages", "messages", messages=[]),
    chat("messages that are text", "messages", messages="hello"),
    chat("a message that is text", "messages[0]", messages=["hello"]),
    chat("a message without a role", "messages[0].role", messages=[{"content": "hello"}]),
    chat("an empty role", "messages[0].role", messages=turn(role="")),
    chat("a role without end", "messages[0].role", messages=turn(role="r" * 1000)),
    chat("a content that is a number", "messages[0].content", messages=turn(content=5)),
    chat("a picture", "messages[0].content", messages=turn(content=[{"type": "image_url", "image_url": {"url": "x"}}])),
    chat("a part without text", "messages[0].content", messages=turn(content=[{"type": "text"}])),
    chat("an unknown field of a message", "messages[0].colour", "UNKNOWN_PARAMETER", messages=turn(colour="red")),
    chat(
        "arguments that are no JSON",
        "messages[0].tool_calls[0].function.arguments",
        messages=turn(tool_calls=[{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}]),
    ),
    chat(
        "arguments that are a list",
        "messages[0].tool_calls[0].function.arguments",
        messages=turn(tool_calls=[{"id": "1", "type": "function", "function": {"name": "f", "arguments": "[]"}}]),
    ),
    chat("a refusal of the template", "messages", messages=[{"role": "assistant", "content": "hello"}]),
    chat("tools that the template drops", "tools", tools=[{"type": "function", "function": {"name": "f"}}]),
    chat("a forced call", "tool_choice", tool_choice="required"),
    chat("a temperature that is text", "temperature", temperature="hot"),
    chat("a temperature below zero", "temperature", temperature=-1),
    chat("a temperature beyond all", "temperature", temperature=1e300),
    chat("a top_p of zero", "top_p", top_p=0),
    chat("a top_p above one", "top_p", top_p=1.5),
    chat("a top_k below minus one", "top_k", top_k=-2),
    chat("a top_k that is too large", "top_k", top_k=2**40),
    chat("a min_p above one", "min_p", min_p=2),
    chat("no choices", "n", n=0),
    chat("choices beyond the rows", "n", n=1000),
    chat("choices beyond an int", "n", n=2**62),
    chat("choices that are a bool", "n", n=True),
    chat("no tokens", "max_tokens", max_tokens=0),
    chat("tokens beyond the context", "max_tokens", max_tokens=100_000),
    chat("two limits", "max_tokens", max_tokens=3, max_completion_tokens=4),
    chat("a penalty beyond two", "presence_penalty", presence_penalty=3),
    chat("a repetition penalty of zero", "repetition_penalty", repetition_penalty=0),
    chat("a bias on a word", "logit_bias", logit_bias={"hello": 1}),
    chat("a bias on an unknown token", "logit_bias", logit_bias={"9999": 1}),
    chat("a bias beyond all", "logit_bias[5]", logit_bias={"5": 1000}),
    chat("an empty stop", "stop[0]", stop=[""]),
    chat("too many stops", "stop", stop=["x"] * 100),
    chat("a stop that is a number", "stop", stop=5),
    chat("a stop token that is none", "stop_token_ids[0]", stop_token_ids=[-5]),
    chat("alternatives without logprobs", "top_logprobs", top_logprobs=3),
    chat("too many alternatives", "top_logprobs", logprobs=True, top_logprobs=21),
    chat("a seed beyond 64 bits", "seed", seed=-(2**63) - 1),
    chat("options of a stream that is none", "stream_options", stream_options={"include_usage": True}),
    chat("a stream that is text", "stream", stream="yes"),
    chat("JSON mode", "response_format", response_format={"type": "json_object"}),
    chat("functions", "functions", "UNSUPPORTED_PARAMETER", functions=[{"name": "f"}]),
    chat("one tool at a time", "parallel_tool_calls", "UNSUPPORTED_PARAMETER", parallel_tool_calls=False),
    chat("a grammar", "guided_json", "UNSUPPORTED_PARAMETER", guided_json={}),
    chat("an unknown parameter", "temprature", "UNKNOWN_PARAMETER", temprature=1),
    chat("a template of one's own", "chat_template", chat_template="{{ 7 * 7 }}"),
    chat("two turns at once", "add_generation_prompt", add_generation_prompt=True, continue_final_message=True),
    chat("no adapters", "adapters", adapters=[]),
    chat("an adapter without a reference", "adapters[0].reference", adapters=[{"weight": 1}]),
    chat("adapters beside an adapter", "adapters", adapters=[{"reference": "other"}]),
    chat("an unknown adapter", "model", "ADAPTER_NOT_FOUND", 404, model=BASE, adapters=[{"reference": "nobody"}]),
    chat(
        "an adapter twice",
        "adapters[1].reference",
        model=BASE,
        adapters=[{"reference": "bot"}, {"reference": "bot"}],
    ),
    chat("a weight beyond all", "adapters[0].weight", model=BASE, adapters=[{"reference": "bot", "weight": 1e6}]),
    chat("a priority beyond all", "priority", priority=10**6),
    chat("an id with a line break", "request_id", request_id="a\nb"),
    text("no prompt", "prompt", prompt=...),
    text("an empty prompt", "prompt", "EMPTY_PROMPT", prompt=""),
    text("no prompts", "prompt", prompt=[]),
    text("a prompt that is a number", "prompt", prompt=3),
    text("prompts of two kinds", "prompt[1]", prompt=["a", 3]),
    text("too many prompts", "prompt", prompt=["a"] * 100),
    text("an unknown token", "prompt[1]", prompt=[5, 9999]),
    text("a token beyond an int", "prompt[0]", prompt=[2**40]),
    text("a prompt beyond the context", "prompt", "PROMPT_TOO_LONG", prompt="x" * 2000),
    text("an echo of tokens", "echo", "UNSUPPORTED_PARAMETER", prompt=[5, 6], echo=True),
    text("the middle of a text", "suffix", "UNSUPPORTED_PARAMETER", suffix="end"),
    text("the best of three", "best_of", "UNSUPPORTED_PARAMETER", best_of=3),
    text("too many logprobs", "logprobs", logprobs=50),
    text("messages for a completion", "messages", "UNKNOWN_PARAMETER", messages=[USER]),
    Wrong("no such path", "/v1/embeddings", {}, "UNKNOWN_PATH", status=404),
    Wrong("a method that is not served", CHAT, b"", "METHOD_NOT_ALLOWED", status=405, method="GET"),
    Wrong("a malformed tenant", CHAT, {}, param="hotslot-tenant", headers={"hotslot-tenant": "No One"}),
    Wrong("a path of the server", "/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "/etc"}, param="lora_path"),
    Wrong(
        "another adapter's version",
        "/v1/load_lora_adapter",
        {"lora_name": "bot", "lora_path": "other:latest"},
        param="lora_name",
    ),
    Wrong(
        "an adapter that is not loaded",
        "/v1/unload_lora_adapter",
        {"lora_name": "nobody"},
        "ADAPTER_NOT_LOADED",
        "lora_name",
        404,
    ),
)


def body_of(wrong: Wrong) -> bytes:
    if isinstance(wrong.body, bytes):
        return wrong.body
    sound: dict[str, dict[str, Any]] = {
        CHAT: {"model": "bot", "messages": [USER]},
        TEXT: {"model": "bot", "prompt": "hello"},
    }
    body = {**sound.get(wrong.path, {}), **wrong.body}
    return json.dumps({name: value for name, value in body.items() if value is not ...}).encode()


async def test_the_table_is_long_and_each_row_has_a_name() -> None:
    assert len(WRONG) >= 50
    assert len({wrong.name for wrong in WRONG}) == len(WRONG)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
async def test_a_wrong_request_is_told_what_is_wrong(wrong: Wrong, gateway: Served, http: httpx2.AsyncClient) -> None:
    headers = {"content-type": "application/json", **wrong.headers}
    answer = await http.request(wrong.method, wrong.path, content=body_of(wrong), headers=headers)
    assert answer.headers["content-type"] == "application/json", answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (answer.status_code, error["code"], error["param"]) == (wrong.status, wrong.code, wrong.param), error
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-request-id"]
    assert len(error["message"]) < 2000
    for inside in ("Traceback", ".py", "127.0.0.1", "pydantic", "hotslot ", "stop.", "sampling."):
        assert inside not in error["message"]
    gateway.worker.assert_nothing_is_held()
