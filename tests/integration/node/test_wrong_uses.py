"""Wrong uses by a client in another language: each one its status with a reason, within seconds, and without noise."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hotslot.ids import Digest
from tests.integration.node.conftest import PROTOS, NodeProgram
from tests.support.checkpoints import adapter
from tests.support.echo_model import echo_model, voice
from tests.support.echo_worker import run_worker
from tests.support.store import open_store

RUN_TIMEOUT_S = 120
AT_MOST_MS = 10_000

EXPECTED = {
    "no prompt": ("INVALID_ARGUMENT", "EMPTY_PROMPT"),
    "an adapter that is not there": ("NOT_FOUND", "ADAPTER_NOT_FOUND"),
    "a reference that is none": ("INVALID_ARGUMENT", "INVALID_REFERENCE"),
    "an adapter twice": ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    "the base alone with an adapter": ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    "a weight that is no number": ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    "a temperature beyond its range": ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    "a share that is no number": ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    "fewer tokens than none": ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    "an empty stop string": ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    "more choices than are served": ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    "a token that the vocabulary does not have": ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    "a prompt that does not fit": ("INVALID_ARGUMENT", "PROMPT_TOO_LONG"),
    "a message that is too large": ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    "a turn without a role": ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    "a part of no kind": ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    "a tool that is no JSON": ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    "a tenant that is none": ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    "two tenants": ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    # Node ends these itself.
    "a deadline that has passed": ("DEADLINE_EXCEEDED", ""),
    "a deadline in the middle": ("DEADLINE_EXCEEDED", ""),
    "a stream that is left": ("CANCELLED", ""),
    "a whole answer without a request": ("INVALID_ARGUMENT", "EMPTY_PROMPT"),
    "a whole answer that takes too long": ("DEADLINE_EXCEEDED", ""),
    "nothing to count": ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    "a token below none": ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    "bytes that are no message": ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    # gRPC's own answers.
    "a method that is not there": ("UNIMPLEMENTED", ""),
    "a store in the place of a worker": ("UNIMPLEMENTED", ""),
    "a worker that is away": ("UNAVAILABLE", ""),
    "a page token of nobody": ("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN"),
    "a tag without a digest": ("INVALID_ARGUMENT", "INVALID_REQUEST"),
    "a tag of an adapter that is not there": ("NOT_FOUND", "ADAPTER_NOT_FOUND"),
}
NAMED = {
    "a part of no kind": "chat.messages[0].parts[1]",
    "a temperature beyond its range": "sampling.temperature: found 1000, expected between 0 and 100",
    "a message that is too large": "at most 4,194,304",
    "a token below none": "token_ids[0]",
}


@pytest.fixture
async def endpoints(tmp_path: Path) -> AsyncIterator[tuple[str, str, list[Digest]]]:
    """A store with two adapters and a worker; the adapters' digests."""
    model = echo_model(step_s=0.01)  # an endless answer takes seconds
    async with open_store(tmp_path / "store") as store, run_worker(model, store.endpoint) as running:
        await store.register(model.spec)
        digests = [
            Digest((await store.push(adapter(spec=model.spec, seed=seed), name, base_model=model.spec.digest)).digest)
            for seed, name in enumerate(("bot", "other"))
        ]
        yield store.endpoint, f"127.0.0.1:{running.server.port}", digests
        running.assert_nothing_is_held()


async def lines_of(command: list[str]) -> list[dict[str, object]]:
    """JSON lines of a program that says nothing else and ends well."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, noise = await asyncio.wait_for(process.communicate(), RUN_TIMEOUT_S)
    assert (process.returncode, noise) == (0, b""), noise.decode()
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.integration
async def test_a_wrong_use_has_its_status_and_its_reason(
    node_program: NodeProgram, endpoints: tuple[str, str, list[Digest]]
) -> None:
    store, worker, _ = endpoints
    found = await lines_of([*node_program("wrong_uses.js"), str(PROTOS), store, worker])
    assert {str(line["what"]): (line["code"], line.get("reason")) for line in found} == EXPECTED
    for line in found:
        assert int(str(line["took_ms"])) < AT_MOST_MS, line
        assert line["message"], line
        assert NAMED.get(str(line["what"]), "") in str(line["message"])
        assert "Traceback" not in str(line["message"])


@pytest.mark.integration
async def test_the_example_for_node_runs(node_program: NodeProgram, endpoints: tuple[str, str, list[Digest]]) -> None:
    _, worker, (bot, other) = endpoints
    found = await lines_of([*node_program("example.js"), str(PROTOS), worker, "bot", "other"])
    told = {str(line.pop("what")): line for line in found if line["what"] != "refused"}
    refused = [line for line in found if "fields" in line]
    assert told["stream"] == {"text": voice(bot), "served": [{"reference": "bot:latest", "digest": bot}]}
    assert told["mix"]["text"] == "+".join(sorted((voice(bot, 0.5), voice(other, 0.25))))[:40]
    assert told["count"] == {"tokens": 19, "texts": [*"Tell me of the sea."]}
    assert [(line["code"], line["reason"], line["fields"]) for line in refused] == [
        ("NOT_FOUND", "ADAPTER_NOT_FOUND", []),
        ("INVALID_ARGUMENT", "INVALID_REQUEST", ["sampling.temperature"]),
    ]
    assert told["deadline"] == {"code": "DEADLINE_EXCEEDED"}
    assert "left" in told
    assert told["away"] == {"code": "UNAVAILABLE", "waited": True}
