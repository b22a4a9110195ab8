"""Wrong uses of the Python client: each one a typed error with what was found, within seconds, and without noise."""

import asyncio
import gc
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hotslot import (
    AdapterSelection,
    BlockingHotslotClient,
    BlockingStoreClient,
    BlockingWorkerClient,
    ChatMessage,
    GenerationRequest,
    HotslotClient,
    Logprobs,
    Sampling,
    Stop,
)
from hotslot.errors import (
    AdapterNotFoundError,
    ClientClosedError,
    HotslotError,
    InvalidEndpointError,
    InvalidRequestError,
    RequestDeadlineError,
    UnavailableError,
    WrongLoopError,
)
from tests.unit.hotslot.conftest import Served

Client = BlockingHotslotClient
Use = Callable[[Any], object]
REQUEST = GenerationRequest("hi", (AdapterSelection("a"),))
AT_MOST_S = 30.0


def _after_closing(client: Client) -> object:
    client.close()
    return client.complete("hi")


def _in_two_loops(client: Client) -> object:
    store, worker = client.store.client.endpoint, client.worker.client.endpoint
    shared = HotslotClient(store, worker)
    asyncio.run(shared.complete("hi"))
    return asyncio.run(shared.complete("hi"))


def _unreachable(client: Client) -> object:
    with BlockingWorkerClient("127.0.0.1:1") as worker:
        return worker.complete("hi", timeout_s=3.0)


def _store_as_worker(client: Client) -> object:
    with BlockingWorkerClient(client.store.client.endpoint) as worker:
        return worker.complete("hi", timeout_s=3.0)


def _made_with(endpoint: Any) -> Use:
    return lambda client: BlockingStoreClient(endpoint)


def _turn(**fields: Any) -> Use:
    return lambda client: client.complete([{"role": "user", **fields}])


WRONG: dict[str, tuple[Use, type[HotslotError], str]] = {
    "no prompt": (lambda c: c.complete(None), InvalidRequestError, "found None, expected GenerationRequest or"),
    "bytes as a prompt": (lambda c: c.complete(b"hi"), InvalidRequestError, "found bytes"),
    "a number as a prompt": (lambda c: c.complete(42), InvalidRequestError, "found 42"),
    "a mapping as a request": (lambda c: c.complete({"prompt": "hi"}), InvalidRequestError, "found dict"),
    "several prompts": (lambda c: c.complete(["a", "b"]), InvalidRequestError, "a request for each"),
    "token ids with a text": (lambda c: c.complete([1, "a"]), InvalidRequestError, "token_ids[1]: found 'a'"),
    "a token id with a fraction": (lambda c: c.complete([1.5]), InvalidRequestError, "found 1.5, expected an integer"),
    "a number as adapters": (lambda c: c.complete("hi", adapters=5), InvalidRequestError, "adapters: found 5"),
    "bytes as adapters": (lambda c: c.complete("hi", adapters=b"a"), InvalidRequestError, "adapters: found bytes"),
    "an adapter that is None": (lambda c: c.complete("hi", adapters=[None]), InvalidRequestError, "adapters[0]"),
    "a pair of one": (lambda c: c.complete("hi", adapters=[("a",)]), InvalidRequestError, "adapters[0]: found tuple"),
    "a weight in words": (lambda c: c.complete("hi", adapters={"a": "much"}), InvalidRequestError, "found 'much'"),
    "a weight that is true": (lambda c: c.complete("hi", adapters=("a", True)), InvalidRequestError, "found True"),
    "a weight that is no number": (
        lambda c: c.complete("hi", adapters={"a": float("nan")}),
        InvalidRequestError,
        "expected a finite number",
    ),
    "a name that is a number": (lambda c: c.complete("hi", adapters={1: 0.5}), InvalidRequestError, "found 1"),
    "adapters in two places": (
        lambda c: c.complete(REQUEST, adapters="b"),
        InvalidRequestError,
        "the request names adapters already",
    ),
    "a turn without a role": (
        lambda c: c.complete([{"content": "hi"}]),
        InvalidRequestError,
        "messages[0].role: missing",
    ),
    "a turn with a field of another API": (_turn(text="hi"), InvalidRequestError, "messages[0]: found 'text'"),
    "a turn whose content is a number": (_turn(content=5), InvalidRequestError, "content: found 5"),
    "a picture": (
        _turn(content=[{"type": "image_url", "image_url": {"url": "x"}}]),
        InvalidRequestError,
        "messages[0].content[0]: found a part of kind 'image_url', expected text",
    ),
    "a call of a tool in OpenAI's form": (
        _turn(tool_calls=[{"function": {}}]),
        InvalidRequestError,
        "tool_calls[0]: found dict, expected ToolCall",
    ),
    "a turn that is a number": (
        lambda c: c.complete([ChatMessage("user", "hi"), 5]),
        InvalidRequestError,
        "messages[1]: found 5",
    ),
    "a chat of a number": (lambda c: c.worker.chat(5), InvalidRequestError, "messages: found 5"),
    "a sampling of words": (
        lambda c: c.complete(GenerationRequest("hi", sampling=Sampling(temperature="hot"))),  # type: ignore[arg-type]
        InvalidRequestError,
        "sampling.temperature: found 'hot'",
    ),
    "a mapping as sampling": (
        lambda c: c.complete(GenerationRequest("hi", sampling={"temperature": 1})),  # type: ignore[arg-type]
        InvalidRequestError,
        "sampling: found dict, expected Sampling",
    ),
    "a stop string by itself": (
        lambda c: c.complete(GenerationRequest("hi", stop=Stop(strings="\n"))),
        InvalidRequestError,
        "stop_strings",
    ),
    "logprobs as a number": (
        lambda c: c.complete(GenerationRequest("hi", logprobs=5)),  # type: ignore[arg-type]
        InvalidRequestError,
        "logprobs: found 5, expected Logprobs",
    ),
    "more alternatives than an int holds": (
        lambda c: c.complete(GenerationRequest("hi", logprobs=Logprobs(2**40))),
        InvalidRequestError,
        "num_alternatives",
    ),
    "a deadline in words": (lambda c: c.complete("hi", timeout_s="soon"), InvalidRequestError, "found 'soon'"),
    "a deadline in the past": (lambda c: c.complete("hi", timeout_s=-1), InvalidRequestError, "timeout_s: found -1"),
    "no deadline": (lambda c: c.complete("hi", timeout_s=None), InvalidRequestError, "timeout_s: found None"),
    "a deadline of nothing": (lambda c: c.worker.complete("hi", timeout_s=0), RequestDeadlineError, "deadline"),
    "token ids to count": (lambda c: c.count_tokens([1, 2]), InvalidRequestError, "expected a text, ChatPrompt"),
    "a text as tokens": (lambda c: c.detokenize("abc"), InvalidRequestError, "token_ids: found 'abc'"),
    "a number as an adapter's name": (lambda c: c.store.get(5), InvalidRequestError, "name: found 5"),
    "an adapter that is not there": (lambda c: c.store.get("nobody"), AdapterNotFoundError, "'nobody' not found"),
    "a number as a folder": (lambda c: c.store.push(5, "a"), InvalidRequestError, "folder: found 5, expected a path"),
    "a place for a version that is a number": (
        lambda c: c.store.pull("a", 5),
        InvalidRequestError,
        "folder: found 5",
    ),
    "a folder that is not there": (lambda c: c.store.push("no-such-folder", "a"), HotslotError, "no-such-folder"),
    "an endpoint that is a URL": (_made_with("http://127.0.0.1:7400"), InvalidEndpointError, "http"),
    "an endpoint without a port": (_made_with("store"), InvalidEndpointError, "found 'store'"),
    "an endpoint that is a pair": (_made_with(("127.0.0.1", 7400)), InvalidRequestError, "endpoint: found tuple"),
    "a client that was closed": (_after_closing, ClientClosedError, "is closed"),
    "a client in a second event loop": (_in_two_loops, WrongLoopError, "another"),
    "a worker that is not there": (_unreachable, UnavailableError, "cannot be reached"),
    "a store in the place of a worker": (_store_as_worker, HotslotError, "does not know this method"),
}  # fmt: skip

VARIABLES = {
    "HOTSLOT_STORE": "http://store",
    "HOTSLOT_WORKER": "nowhere",
    "HOTSLOT_TENANT": "A Tenant",
    "HOTSLOT_USE_PROXY": "perhaps",
}


@pytest.fixture
def hotslot(served: Served) -> Iterator[BlockingHotslotClient]:
    with BlockingHotslotClient(*served.endpoints) as client:
        yield client


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_use_is_a_typed_error_that_says_what_was_found(
    hotslot: BlockingHotslotClient, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    use, kind, words = WRONG[case]
    began_s = time.monotonic()
    with warnings.catch_warnings():
        # Of coroutines that were never awaited.
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(kind) as caught:
            use(hotslot)
        gc.collect()
    assert words in caught.value.message
    assert caught.value.reason
    assert time.monotonic() - began_s < AT_MOST_S
    noise = capfd.readouterr()
    assert "Traceback" not in noise.out + noise.err
    assert "never awaited" not in noise.err


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, VARIABLES[variable])
    with pytest.raises(InvalidRequestError, match=f"{variable}: found|{variable}: .*"):
        BlockingHotslotClient()


@pytest.mark.parametrize("text", ["soon", "-1", "0", "inf", "nan"])
def test_a_wrong_deadline_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, hotslot: BlockingHotslotClient, text: str
) -> None:
    monkeypatch.setenv("HOTSLOT_TIMEOUT_S", text)
    with pytest.raises(InvalidRequestError, match=f"HOTSLOT_TIMEOUT_S: found '{text}', expected seconds above 0"):
        hotslot.complete("hi")


def test_clients_take_their_defaults_from_the_environment(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    store, worker = served.endpoints
    monkeypatch.setenv("HOTSLOT_STORE", store)
    monkeypatch.setenv("HOTSLOT_WORKER", worker)
    monkeypatch.setenv("HOTSLOT_TENANT", "acme")
    monkeypatch.setenv("HOTSLOT_TIMEOUT_S", "0.5")
    with BlockingHotslotClient() as client:
        assert client.complete("hi").text == "Hello, sailor"
        assert (client.store.client.endpoint, client.worker.client.endpoint) == (store, worker)
        served.worker.inference.hang_after_pieces = 1
        with pytest.raises(RequestDeadlineError):
            client.complete("hi")
    with BlockingHotslotClient("127.0.0.1:1", worker) as client:
        assert client.store.client.endpoint == "127.0.0.1:1", "an argument comes first"
