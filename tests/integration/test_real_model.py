"""The real model behind real services: what arrives over gRPC is what PEFT says, and kill -9 loses nothing."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.reference import read_reference
from hotslot import AdapterSelection, BlockingHotslotClient, GenerationRequest, HotslotClient, Logprobs, Started, Stop
from hotslot.errors import HotslotError
from hotslot.local.children import Child
from tests.integration.conftest import DEMO_ADAPTERS
from tests.support.stack import WORKER_READY_S, Stack

pytestmark = [pytest.mark.integration, pytest.mark.model]

NUM_TOKENS = 32
TOLERANCE = 1e-3
NAMES = sorted(folder.name for folder in DEMO_ADAPTERS.iterdir() if folder.is_dir())
KILL_ROUND_S = 120.0


@pytest.fixture(scope="module")
def digests(hotslot: BlockingHotslotClient) -> dict[str, str]:
    """All shipped adapters, pushed; their versions by name."""
    return {name: hotslot.store.push(DEMO_ADAPTERS / name, f"real/{name}").version.digest for name in NAMES}


def request_for(name: str, prompt_ids: list[int]) -> GenerationRequest:
    return GenerationRequest(
        tuple(prompt_ids),
        () if name == "base" else (AdapterSelection(f"real/{name}"),),
        base_only=name == "base",
        stop=Stop(max_tokens=NUM_TOKENS, ignore_eos=True),
        logprobs=Logprobs(num_alternatives=20),
    )


async def test_a_mixed_batch_over_grpc_answers_as_peft(
    digests: dict[str, str], store_process: Child, worker_process: Child
) -> None:
    reference: dict[str, list[dict[str, Any]]] = read_reference()["models"]
    async with HotslotClient(store_process.spec.endpoint, worker_process.spec.endpoint) as hotslot:
        requests = {name: request_for(name, reference[name][1]["prompt_ids"]) for name in ("base", *NAMES)}
        answers = await asyncio.gather(*(hotslot.complete(request) for request in requests.values()))
    for name, answer in zip(requests, answers, strict=True):
        expected = reference[name][1]
        served = [adapter.digest for adapter in answer.started.adapters]
        assert served == ([] if name == "base" else [digests[name]])
        choice = answer.choices[0]
        assert list(choice.token_ids) == expected["greedy_ids"][:NUM_TOKENS], name
        positions = zip(
            choice.logprobs, expected["top_ids"], expected["top_logits"], expected["logsumexp"], strict=False
        )
        for token, ids, logits, logsumexp in positions:
            wanted = {token_id: logit - logsumexp for token_id, logit in zip(ids, logits, strict=True)}
            for token_id, logprob in ((token.token_id, token.logprob), *(found[:2] for found in token.alternatives)):
                assert logprob == pytest.approx(wanted[token_id], abs=TOLERANCE)


@pytest.mark.chaos
@pytest.mark.parametrize("victim", ["worker", pytest.param("store", marks=pytest.mark.slow)])
async def test_kill_9_under_load_and_the_work_goes_on(
    victim: str, digests: dict[str, str], stack: Stack, store_process: Child, worker_process: Child
) -> None:
    del store_process, worker_process  # they run; the stack knows which processes they are now
    reference: dict[str, list[dict[str, Any]]] = read_reference()["models"]
    assert stack.store is not None
    answered: dict[str, int] = dict.fromkeys(NAMES, 0)
    stop = asyncio.Event()

    async def ask_for_ever(name: str) -> None:
        expected = reference[name][0]
        request = request_for(name, expected["prompt_ids"])
        async with HotslotClient(store_endpoint, worker_endpoint, route=False) as hotslot:
            while not stop.is_set():
                tokens: list[int] = []
                try:
                    async for event in hotslot.generate(request):
                        if isinstance(event, Started):
                            assert [a.digest for a in event.adapters] == [digests[name]]
                        tokens.extend(getattr(event, "token_ids", ()))
                except HotslotError:
                    await asyncio.sleep(0.1)
                else:
                    answered[name] += 1
                # Whole or cut short by the kill: never a wrong token.
                assert tokens == expected["greedy_ids"][: len(tokens)]

    async def everyone_was_answered_again() -> None:
        before = dict(answered)
        while any(answered[name] == before[name] for name in NAMES[:3]):
            await asyncio.sleep(0.05)
            for task in tasks:
                if task.done():
                    task.result()

    store_endpoint, worker_endpoint = stack.store.spec.endpoint, stack.workers[0].spec.endpoint
    tasks = [asyncio.create_task(ask_for_ever(name)) for name in NAMES[:3]]
    try:
        async with asyncio.timeout(KILL_ROUND_S):
            await everyone_was_answered_again()
        child = stack.store if victim == "store" else stack.workers[0]
        again = stack.start_again(child)
        await asyncio.to_thread(again.wait_ready, WORKER_READY_S)
        async with asyncio.timeout(KILL_ROUND_S):
            await everyone_was_answered_again()
    finally:
        stop.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    check_blobs(stack.folder / "store")


def check_blobs(data_dir: Path) -> None:
    """Every published blob has the digest that it is named by."""
    blobs = [path for path in data_dir.glob("**/blobs/**/*") if path.is_file()]
    assert len(blobs) >= len(NAMES)
    for path in blobs:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
