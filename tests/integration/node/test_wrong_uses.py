"""Wrong uses by a client in another language: each one its status with a reason, within seconds, and without noise."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hotslot.ids import Digest
from tests.integration.identity.test_secured_fleet import SecuredFleet
from tests.integration.node.conftest import PROTOS, NodeProgram
from tests.support.checkpoints import adapter
from tests.support.echo_model import echo_model, voice
from tests.support.echo_worker import run_worker
from tests.support.store import open_store

RUN_TIMEOUT_S = 120
AT_MOST_MS = 10_000
SPEC = echo_model().spec

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


async def lines_of(command: list[str], **environment: str) -> list[dict[str, object]]:
    """JSON lines of a program that says nothing else and ends well."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, **environment}
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
async def test_the_example_for_node_runs(
    node_program: NodeProgram, endpoints: tuple[str, str, list[Digest]], tmp_path: Path
) -> None:
    store, worker, (_, other) = endpoints
    adapter(spec=SPEC, seed=5).write(tmp_path / "pushed")
    arguments = [str(PROTOS), store, worker, str(tmp_path / "pushed"), SPEC.digest, "pushed", "other"]
    found = await lines_of([*node_program("example.js"), *arguments])
    bot = next(Digest(str(line["digest"])) for line in found if line["what"] == "push")
    told = {str(line.pop("what")): line for line in found if line["what"] != "refused"}
    refused = [line for line in found if "fields" in line]
    assert told["push"] == {"digest": bot, "created": True, "tags": ["best", "latest"]}
    assert told["stream"] == {"text": voice(bot), "served": [{"reference": "pushed:latest", "digest": bot}]}
    assert told["mix"]["text"] == "+".join(sorted((voice(bot, 0.5), voice(other, 0.25))))[:40]
    assert told["count"] == {"tokens": 19, "texts": [*"Tell me of the sea."]}
    assert [(line["code"], line["reason"], line["fields"]) for line in refused] == [
        ("NOT_FOUND", "ADAPTER_NOT_FOUND", []),
        ("INVALID_ARGUMENT", "INVALID_REQUEST", ["sampling.temperature"]),
    ]
    assert told["deadline"] == {"code": "DEADLINE_EXCEEDED"}
    assert "left" in told
    assert told["away"] == {"code": "UNAVAILABLE", "waited": True}


@pytest.mark.integration
async def test_the_example_for_node_proves_who_it_is(
    node_program: NodeProgram, fleet: SecuredFleet, tmp_path: Path
) -> None:
    adapter(spec=SPEC, seed=9).write(tmp_path / "bot")
    security = fleet.security("alice")
    variables = {
        "HOTSLOT_TLS_CA_FILE": str(security.ca_file),
        "HOTSLOT_TLS_CERT_FILE": str(security.cert_file),
        "HOTSLOT_TLS_KEY_FILE": str(security.key_file),
        "HOTSLOT_TOKEN": security.token,
    }
    # Node warns of a certificate's name that is an address.
    store, worker = (endpoint.replace("127.0.0.1", "localhost") for endpoint in (fleet.store, fleet.workers[0]))
    places = [str(PROTOS), store, worker, str(tmp_path / "bot")]
    arguments = [*places, SPEC.digest, "node-bot", "alice-bot"]
    found = await lines_of([*node_program("example.js"), *arguments], **variables)
    told = {str(line["what"]): line for line in found}
    assert told["stream"]["served"] == [{"reference": "node-bot:latest", "digest": told["push"]["digest"]}]
    with pytest.raises(AssertionError, match="a token would leave in plaintext"):
        await lines_of([*node_program("example.js"), *arguments], HOTSLOT_TOKEN=security.token)
