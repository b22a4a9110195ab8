"""Measures a trainer's loop on the real model: from the call that publishes from memory to the first token with it.

`python -m tools.bench.publishing [--quick]` prints one JSON object. Store, Redis and worker are processes of this
machine. The limit is what nothing can save: a copy and a SHA-256 of the same bytes, and a warm first token. Rounds
of both, and of a push of the same weights from a folder with requests until the new version answers, take turns.
CPU time, which other work on the machine hardly changes, is that of each process from the call to its first token.
"""

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from hotslot import AdapterSelection, GenerationRequest, HotslotClient, Stop
from hotslot.clients.trained import config_json
from hotslot.formats.file_names import CONFIG_FILE, WEIGHTS_FILE
from hotslot.formats.weight_files import weights_file
from tests.support.stack import Stack
from tools.bench.smollm import LAYERS, SHAPES
from worker_service.demo_model import BASE_MODEL, default_cache_dir, ensure_model

SIZES = {"2 MB": (("self_attn.q_proj", "self_attn.v_proj"), 8), "20 MB": (tuple(SHAPES), 16)}
"""Modules and rank of adapters in float32, as trainers write them."""
WORKER_SETTINGS = {
    "buckets": "1,8,64", "max_sequences": "8", "num_slots": "8", "slot_rank": "16", "kv_tokens": "8192",
    "max_sequence_tokens": "1024", "num_threads": "1",
}  # fmt: skip
PROMPT = "The capital of France is"
Weights = dict[str, "np.ndarray[Any, Any]"]
Processes = Mapping[str, psutil.Process]


def weights_of(modules: tuple[str, ...], rank: int, seed: int) -> Weights:
    """A state dict under PEFT's names."""
    random = np.random.default_rng(seed)
    found: Weights = {}
    for layer in range(LAYERS):
        for module in modules:
            rows, columns = SHAPES[module]
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            found[f"{prefix}.lora_A.weight"] = random.standard_normal((rank, rows), dtype=np.float32)
            found[f"{prefix}.lora_B.weight"] = random.standard_normal((columns, rank), dtype=np.float32) * 0.01
    return found


async def seconds(call: Callable[[], Awaitable[object]]) -> float:
    """Seconds until a call has its result."""
    began_s = time.perf_counter()
    await call()
    return time.perf_counter() - began_s


class Round:
    """One size, measured again and again."""

    def __init__(
        self, client: HotslotClient, folder: Path, modules: tuple[str, ...], rank: int, processes: Processes
    ) -> None:
        self._client = client
        self._folder = folder
        self._modules, self._rank = modules, rank
        names = sorted({module.rpartition(".")[2] for module in modules})
        self._config = {
            "peft_type": "LORA", "base_model_name_or_path": BASE_MODEL, "r": rank, "lora_alpha": rank,
            "target_modules": names,
        }  # fmt: skip
        self.size_bytes = 0
        self.stages: dict[str, list[float]] = {"published_ms": [], "first_token_ms": [], "push_first_token_ms": []}
        self.copied_ms: list[float] = []
        self.warm_ms: list[float] = []
        """Both parts of the limit."""
        self.cpu_s = dict.fromkeys(processes, 0.0)
        self._processes = processes
        self.num_not_ready = 0

    async def run(self, seed: int) -> None:
        """Both ways with other weights, and the limit."""
        weights = weights_of(self._modules, self._rank, 2 * seed)
        self.size_bytes = sum(array.nbytes for array in weights.values())
        used_s, began_s = self._used_s(), time.perf_counter()
        published = await self._client.publish(
            weights, self._config, "bench/train:live", metadata={"step": seed}, keep=2
        )
        published_s = time.perf_counter()
        await self._until(published.version.digest)
        self.stages["published_ms"].append(1e3 * (published_s - began_s))
        self.stages["first_token_ms"].append(1e3 * (time.perf_counter() - began_s))
        self.num_not_ready += not published.is_ready
        for name, at_s in self._used_s().items():
            self.cpu_s[name] += at_s - used_s[name]
        data = b"".join(array.tobytes() for array in weights.values())
        began_s = time.perf_counter()
        hashlib.sha256(bytearray(data)).digest()
        self.copied_ms.append(1e3 * (time.perf_counter() - began_s))
        self.warm_ms.append(1e3 * await seconds(self._ask))
        self._write(weights_of(self._modules, self._rank, 2 * seed + 1))
        began_s = time.perf_counter()
        pushed = await self._client.store.push(self._folder, "bench/train:live", keep=2)
        await self._until(pushed.version.digest)
        self.stages["push_first_token_ms"].append(1e3 * (time.perf_counter() - began_s))

    def result(self) -> dict[str, Any]:
        """Medians, the worst of a hundred, and how far they are from the limit."""
        limit_ms = statistics.median(map(sum, zip(self.copied_ms, self.warm_ms, strict=True)))
        rows: dict[str, Any] = {"size_bytes": self.size_bytes, "limit_ms": round(limit_ms, 1)}
        parts = {"copy and SHA-256": self.copied_ms, "warm first token": self.warm_ms}
        rows["limit's parts, ms"] = {name: round(statistics.median(values), 1) for name, values in parts.items()}
        for name, values in self.stages.items():
            rows[name] = {"median": round(statistics.median(values), 1), "p99": round(np.percentile(values, 99), 1)}
        rows["first token / limit"] = round(statistics.median(self.stages["first_token_ms"]) / limit_ms, 2)
        rows["cpu_ms"] = {name: round(1e3 * used_s / len(self.warm_ms), 1) for name, used_s in self.cpu_s.items()}
        rows["not_ready"] = self.num_not_ready
        return rows

    def _used_s(self) -> dict[str, float]:
        """CPU time that each process has used so far."""
        return {name: sum(process.cpu_times()[:2]) for name, process in self._processes.items()}

    async def _ask(self) -> str:
        request = GenerationRequest(PROMPT, (AdapterSelection("bench/train:live"),), stop=Stop(max_tokens=1))
        return str((await self._client.complete(request)).started.adapters[0].digest)

    async def _until(self, digest: str) -> None:
        while await self._ask() != digest:
            pass

    def _write(self, weights: Weights) -> None:
        self._folder.mkdir(exist_ok=True)
        (self._folder / CONFIG_FILE).write_bytes(config_json(self._config))
        with (self._folder / WEIGHTS_FILE).open("wb") as file:
            file.writelines(weights_file(weights))


async def measure(stack: Stack, rounds: int) -> dict[str, Any]:
    """Both sizes, after rounds that are not counted."""
    assert stack.store is not None
    found = {}
    pids = {"client": os.getpid(), "store": stack.store.pid, "worker": stack.workers[0].pid}
    processes = {name: psutil.Process(pid) for name, pid in pids.items()}
    async with HotslotClient(stack.store.spec.endpoint, stack.workers[0].spec.endpoint) as client:
        for number, (name, (modules, rank)) in enumerate(SIZES.items()):
            warm = Round(client, stack.folder / "adapter", modules, rank, processes)
            for seed in range(2):
                await warm.run(10_000 * (number + 1) + seed)
            counted = Round(client, stack.folder / "adapter", modules, rank, processes)
            for seed in range(rounds):
                await counted.run(20_000 * (number + 1) + seed)
            found[name] = counted.result()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 8 if parser.parse_args().quick else 40
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder)) as stack:
        stack.start_store(retention_grace_s="2")
        stack.start_worker(ensure_model(), model_name=BASE_MODEL, cache_dir=str(default_cache_dir()), **WORKER_SETTINGS)
        print(json.dumps(asyncio.run(measure(stack, rounds)), indent=2))


if __name__ == "__main__":
    main()
