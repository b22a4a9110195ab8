"""Measures hot-swap against PEFT's and against a copy of the same bytes, and recompilations over ten thousand of them.

`python -m tools.bench.hot_swap [--quick]` prints one JSON object. Everything runs in this process, in bf16, in turns.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter, hotswap_adapter_from_state_dict
from transformers import AutoModelForCausalLM

from hotslot.contract.generation import Sampling
from hotslot.ids import Digest
from worker_service.demo_model import BASE_MODEL, default_cache_dir, ensure_model
from worker_service.engine.messages import Segment
from worker_service.model.loading import load_model
from worker_service.model.options import LoadedModel, ModelOptions
from worker_service.model.weights import HostAdapter, HostModule

RANK = 16
NUM_SLOTS = 8
SWAPS_BETWEEN_STEPS = 50
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def random_adapter(loaded: LoadedModel, number: int) -> HostAdapter:
    """Rank 16 on every linear, in one stretch of memory, as adapters are decoded."""
    generator = torch.Generator().manual_seed(number)
    linears = loaded.runner.slot_linears
    sizes = [RANK * size for linear in linears.values() for size in (linear.in_features, linear.out_features)]
    memory = (torch.randn(sum(sizes), generator=generator) * 0.02).bfloat16()
    parts = [part.view(RANK, -1) for part in torch.split(memory, sizes)]
    pairs = zip(linears, parts[::2], parts[1::2], strict=True)
    modules = {path: HostModule(a_RI, b_RO, 1.0) for path, a_RI, b_RO in pairs}
    return HostAdapter(Digest(f"sha256:{number:064x}"), RANK, memory.nbytes, modules)


def peft_swaps(folder: Path, scratch: Path) -> dict[str, Callable[[], object]]:
    """PEFT's hot-swap on the same model, from disk and from memory."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LINEARS, init_lora_weights=False)
    model: PeftModel = get_peft_model(base, config, adapter_name="a0")
    state = {
        name.replace(".weight", ".a0.weight"): tensor.clone()
        for name, tensor in get_peft_model_state_dict(model, adapter_name="a0").items()
    }
    model.save_pretrained(scratch, selected_adapters=["a0"])
    return {
        "peft_from_disk": lambda: hotswap_adapter(model, str(scratch / "a0"), adapter_name="a0"),
        "peft_from_memory": lambda: hotswap_adapter_from_state_dict(model, state, "a0", config),
    }


def our_swaps(loaded: LoadedModel) -> dict[str, Callable[[], object]]:
    """Host memory to slot, and the plain copy of as many bytes; from other memory every time, so no cache helps."""
    made = [random_adapter(loaded, number) for number in range(4)]
    adapters = itertools.cycle(made)
    flats = itertools.cycle([torch.zeros(made[0].size_bytes, dtype=torch.uint8) for _ in made])
    flat_target = torch.zeros(made[0].size_bytes, dtype=torch.uint8)

    def swap() -> None:
        for _ in loaded.runner.write_slots([0], next(adapters)):
            pass

    return {"hot_swap": swap, "copy_of_its_bytes": lambda: flat_target.copy_(next(flats))}


def measure_swaps(loaded: LoadedModel, folder: Path, rounds: int) -> dict[str, float]:
    """Medians, of rounds in turn after two that do not count."""
    with tempfile.TemporaryDirectory() as scratch:
        ways = our_swaps(loaded) | peft_swaps(folder, Path(scratch))
        took_s: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 2):
            for name, way in ways.items():
                began_s = time.perf_counter()
                way()
                if number >= 2:
                    took_s[name].append(time.perf_counter() - began_s)
    return {f"{name}_ms": 1e3 * statistics.median(values) for name, values in took_s.items()}


def recompiles_over(loaded: LoadedModel, num_swaps: int) -> int:
    """Recompilations while adapters are swapped into every slot, with a step of all rows now and then."""
    made = [random_adapter(loaded, number) for number in range(4)]
    blocks = loaded.limits.num_blocks // NUM_SLOTS
    segments = [
        Segment((5,), 0, tuple(range(row * blocks, (row + 1) * blocks)), ((row, 1.0),), Sampling())
        for row in range(NUM_SLOTS)
    ]
    for number in range(num_swaps):
        for _ in loaded.runner.write_slots([number % NUM_SLOTS], made[number % len(made)]):
            pass
        if number % SWAPS_BETWEEN_STEPS == 0:
            loaded.runner.run(segments)
    return loaded.runner.recompiles


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    quick = parser.parse_args().quick
    # Standard output is the result's alone.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    folder = ensure_model()
    loaded = load_model(
        ModelOptions(
            model=str(folder),
            model_name=BASE_MODEL,
            num_slots=NUM_SLOTS,
            slot_rank=RANK,
            kv_tokens=8192,
            max_sequence_tokens=1024,
            token_buckets=(1, 8, 64),
            cache_dir=default_cache_dir(),
        )
    )
    num_swaps = 1_000 if quick else 10_000
    result: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "adapter_mb": random_adapter(loaded, 0).size_bytes / 1e6,
        **measure_swaps(loaded, folder, rounds=12 if quick else 60),
        "swaps": num_swaps,
        "recompiles": recompiles_over(loaded, num_swaps),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
