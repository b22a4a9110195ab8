"""Many clients importing at once from a store that is a process of its own: its downloads and its memory."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
from store_service.settings import StoreSettings
from tests.support.checkpoints import adapter
from tests.support.fake_hub import FakeHub
from tests.support.store import finish, hub_request, reach
from tests.support.store_process import StoreForks

NUM_CLIENTS = 50
WEIGHTS = "adapter_model.safetensors"
MIB = 2**20
SIZE_BYTES = 16 * MIB


def large_repositories() -> tuple[BaseSpec, dict[str, dict[str, bytes]]]:
    """One repository for each client: 16 MiB of the same weights, each with another scaling."""
    module = BaseModule("model.layers.0.mlp.wide_proj", ModuleKind.LINEAR, 4096, 4096)
    spec = BaseSpec("acme/wide", "llama", "f", (module,))
    draft = adapter(("wide_proj",), spec=spec, rank=512)
    weights = draft.files()[WEIGHTS]
    assert len(weights) > SIZE_BYTES
    return spec, {
        f"acme/bot-{i}": {
            "adapter_config.json": json.dumps({**draft.config, "lora_alpha": i + 1}).encode(),
            WEIGHTS: weights,
        }
        for i in range(NUM_CLIENTS)
    }


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had in use since it started."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines() if "VmHWM" in line)
    return int(line.split()[1]) * 1024


async def test_one_download_for_one_adapter_and_bounded_memory_for_many(
    tmp_path: Path, hub: FakeHub, forks: StoreForks
) -> None:
    spec, hub.repositories = large_repositories()
    chosen: dict[str, Any] = {
        "max_read_streams": 4,
        "max_admissions": 1,
        "max_restores": 1,
        "max_rank": 512,
    }
    bound_bytes = StoreSettings(**chosen).memory_bound_bytes
    assert bound_bytes < NUM_CLIENTS * SIZE_BYTES, "or the test could not tell"
    async with forks.store(tmp_path, hub_endpoint=hub.endpoint, **chosen) as store, store.client() as client:
        await client.register(spec)
        hub.gate = threading.Event()
        same = client.import_calls(*(hub_request(f"same-{i}", repo_id="acme/bot-0") for i in range(NUM_CLIENTS)))
        await asyncio.gather(*(reach(call, "FETCHING") for call in same))
        hub.gate.set()
        versions = await asyncio.gather(*(finish(call) for call in same))
        assert len({version.digest for version in versions}) == 1
        assert hub.requests[WEIGHTS] == 1
        different = [hub_request(f"different-{i}", repo_id=f"acme/bot-{i}") for i in range(NUM_CLIENTS)]
        versions = await asyncio.gather(*(client.import_(request) for request in different))
        assert len({version.digest for version in versions}) == NUM_CLIENTS
        assert hub.requests[WEIGHTS] == 1 + NUM_CLIENTS
        assert list((tmp_path / "data" / "imports").iterdir()) == []
        print(f"at most {peak_bytes(store.pid) / MIB:.0f} MiB, bound {bound_bytes / MIB:.0f} MiB")  # noqa: T201
        assert peak_bytes(store.pid) < bound_bytes
