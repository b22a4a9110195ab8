"""A client in another language, which knows the services only by the protos as they are in the repository."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from hotslot import BlockingHotslotClient, Chunk, GenerationRequest, Stop
from hotslot.contract.generation import AdapterSelection, ChatMessage
from hotslot.local.embedded_valkey import embedded_valkey
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2 as control_pb
from tests.integration.conftest import DEMO_ADAPTERS
from tests.integration.node.conftest import HERE, PROTOS, NodeProgram
from tests.support.checkpoints import adapter
from tests.support.echo_model import echo_model, voice
from tests.support.fleet import fleet_of
from tests.support.store import open_store

RUN_TIMEOUT_S = 180


@pytest.fixture
def node_client(node_program: NodeProgram) -> list[str]:
    """The command that runs client.js."""
    return node_program("client.js")


def test_the_lock_names_no_registry() -> None:
    assert "resolved" not in (HERE / "package-lock.json").read_text(encoding="utf-8")


@pytest.mark.integration
@pytest.mark.model
def test_a_node_client_lists_adapters_and_streams_a_generation(
    node_client: list[str], hotslot: BlockingHotslotClient
) -> None:
    for name in ("node/pirate", "node/second"):
        hotslot.store.push(DEMO_ADAPTERS / "pirate", name)
    digest = hotslot.store.resolve("node/pirate").version.digest
    prompt = "What is the capital of France?"
    arguments = [str(PROTOS), hotslot.store.client.endpoint, hotslot.worker.client.endpoint, "node/pirate", prompt]
    done = subprocess.run(
        [*node_client, *arguments], check=True, stdout=subprocess.PIPE, text=True, timeout=RUN_TIMEOUT_S
    )
    found = json.loads(done.stdout)

    assert {"node/pirate", "node/second"} <= set(found["adapters"])
    started, *chunks, finished = found["events"]
    assert [started["kind"], *{c["kind"] for c in chunks}, finished["kind"]] == ["started", "chunk", "finished"]
    assert started["adapters"] == [{"reference": "node/pirate:latest", "digest": digest, "weight": 1}]
    assert finished["usage"]["completion_tokens"] == sum(len(c["token_ids"]) for c in chunks)
    assert len(chunks) > 1, "it streams"
    assert found["refused"]["code"] == "NOT_FOUND"
    assert found["refused"]["reason"] == "ADAPTER_NOT_FOUND"

    request = GenerationRequest(
        (ChatMessage("user", prompt),), (AdapterSelection("node/pirate"),), stop=Stop(max_tokens=12)
    )
    ours = "".join(event.text for event in hotslot.worker.generate(request) if isinstance(event, Chunk))
    assert "".join(chunk["text"] for chunk in chunks) == ours


@pytest.mark.integration
async def test_a_node_client_streams_through_a_worker_that_forwards(node_client: list[str], tmp_path: Path) -> None:
    spec = echo_model().spec
    with embedded_valkey() as valkey:
        async with open_store(tmp_path / "store") as store, fleet_of(2, store.endpoint, valkey.url) as (front, other):
            await store.register(spec)
            version = await store.push(adapter(spec=spec), "bot", base_model=spec.digest)
            await (await front.calls()).control.DrainWorker(control_pb.DrainWorkerRequest(), timeout=60)
            arguments = [str(PROTOS), store.endpoint, front.endpoint, "bot", "Hello"]
            process = await asyncio.create_subprocess_exec(*node_client, *arguments, stdout=asyncio.subprocess.PIPE)
            output, _ = await asyncio.wait_for(process.communicate(), RUN_TIMEOUT_S)
    found = json.loads(output)
    started, *chunks, finished = found["events"]
    assert started["worker_id"] == other.worker_id
    assert finished["kind"] == "finished"
    assert "".join(chunk["text"] for chunk in chunks) == voice(version.digest)[:12]
    assert found["refused"]["reason"] == "ADAPTER_NOT_FOUND"
