"""Measures the model: hot-swap and mixed batches against PEFT, adapters against none, a swap's effect on others.

`python -m tools.bench.model [--quick]` prints one JSON object. Everything runs in this process, in bf16, one after the
other, with the same threads; figures are medians.
"""

import argparse
import itertools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
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
NUM_ADAPTERS = 8
CONTEXT_TOKENS = 64
"""Length of every row before the steps that are timed."""
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def timed(function: Callable[[], object], repetitions: int) -> list[float]:
    """Seconds of each call after two that do not count."""
    durations_s = []
    for index in range(repetitions + 2):
        began_s = time.perf_counter()
        function()
        if index >= 2:
            durations_s.append(time.perf_counter() - began_s)
    return durations_s


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


def measure_swap(loaded: LoadedModel, repetitions: int) -> dict[str, float]:
    """Host memory to slot, beside the plain copy of the same bytes; from other memory every time, so no cache helps."""
    made = [random_adapter(loaded, number) for number in range(4)]
    adapters = itertools.cycle(made)
    size_bytes = made[0].size_bytes
    flats = itertools.cycle([torch.zeros(size_bytes, dtype=torch.uint8) for _ in made])
    flat_target = torch.zeros(size_bytes, dtype=torch.uint8)

    def swap() -> None:
        for _ in loaded.runner.write_slots([0], next(adapters)):
            pass

    return {
        "adapter_mb": size_bytes / 1e6,
        "hot_swap_ms": 1e3 * statistics.median(timed(swap, repetitions)),
        "copy_of_its_bytes_ms": 1e3 * statistics.median(timed(lambda: flat_target.copy_(next(flats)), repetitions)),
    }


def rows(num_rows: int, gates: Callable[[int], tuple[tuple[int, float], ...]], position: int) -> list[Segment]:
    """One decoding token for each row."""
    blocks = (CONTEXT_TOKENS + 4096) // 16 // 8
    return [
        Segment((5,), position, tuple(range(row * blocks, (row + 1) * blocks)), gates(row), Sampling())
        for row in range(num_rows)
    ]


def measure_batches(loaded: LoadedModel, num_steps: int) -> dict[str, float]:
    """Tokens a second while decoding, rounds of all variants taken in turn so that drift hits them alike."""
    runner = loaded.runner
    for slot in range(NUM_ADAPTERS):
        for _ in runner.write_slots([slot], random_adapter(loaded, slot)):
            pass
    variants: dict[str, tuple[int, Callable[[int], tuple[tuple[int, float], ...]]]] = {
        "1_row_base": (1, lambda row: ()),
        "1_row_adapter": (1, lambda row: ((0, 1.0),)),
        "8_rows_base": (8, lambda row: ()),
        "8_rows_one_adapter": (8, lambda row: ((0, 1.0),)),
        "8_rows_8_adapters": (8, lambda row: ((row, 1.0),)),
    }
    durations_s: dict[str, list[float]] = {name: [] for name in variants}
    for step in range(num_steps):
        for name, (num_rows, gates) in variants.items():
            segments = rows(num_rows, gates, CONTEXT_TOKENS + step)
            began_s = time.perf_counter()
            runner.run(segments)
            durations_s[name].append(time.perf_counter() - began_s)
    return {name: variants[name][0] / statistics.median(times) for name, times in durations_s.items()}


def time_step(loaded: LoadedModel, step: int) -> float:
    """Seconds of a step of 8 rows without adapters."""
    segments = rows(NUM_ADAPTERS, lambda row: (), CONTEXT_TOKENS + step)
    began_s = time.perf_counter()
    loaded.runner.run(segments)
    return time.perf_counter() - began_s


def answer_with_steps(connection: Connection, options: ModelOptions) -> None:
    """Run the other process: one step for each number that it is sent, until there are no more."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    loaded = load_model(options)
    connection.send(0.0)
    while (step := connection.recv()) is not None:
        connection.send(time_step(loaded, step))


@contextmanager
def stepping(options: ModelOptions) -> Iterator[Callable[[int], float]]:
    """A model in a process of its own; calling what is yielded runs a step there and returns its seconds."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=answer_with_steps, args=(there, options))
    process.start()
    here.recv()

    def step(number: int) -> float:
        here.send(number)
        duration_s: float = here.recv()
        return duration_s

    yield step
    here.send(None)
    process.join()


def measure_base_only(options: ModelOptions, num_steps: int) -> dict[str, float]:
    """Measure the cost of slots for requests that use none, beside a model with next to no slots; steps are taken in
    turn.

    Each has its own process, because code is compiled for one set of slots in each.
    """
    few = replace(options, num_slots=1, slot_rank=1, max_rank=1, target_modules=("v_proj",))
    with stepping(options) as with_slots, stepping(few) as without:
        pairs = [(with_slots(number), without(number)) for number in range(num_steps)]
    with_slots_s, without_s = zip(*pairs, strict=True)
    return {
        "with_slots_tok_s": NUM_ADAPTERS / statistics.median(with_slots_s),
        "without_tok_s": NUM_ADAPTERS / statistics.median(without_s),
    }


def measure_peft(folder: Path, repetitions: int) -> dict[str, float]:
    """PEFT on the same model: its hot-swap, and its mixed batch (`adapter_names=`), eager as it must be."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LINEARS, init_lora_weights=False)
    model: PeftModel = get_peft_model(base, config, adapter_name="a0")
    state = {
        name.replace(".weight", ".a0.weight"): tensor.clone()
        for name, tensor in get_peft_model_state_dict(model, adapter_name="a0").items()
    }
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved, selected_adapters=["a0"])
        from_disk = timed(lambda: hotswap_adapter(model, f"{saved}/a0", adapter_name="a0"), repetitions)
    from_memory = timed(lambda: hotswap_adapter_from_state_dict(model, state, "a0", config), repetitions)
    for number in range(1, NUM_ADAPTERS):
        model.add_adapter(f"a{number}", config)
    model.eval()
    tokens = torch.full((NUM_ADAPTERS, CONTEXT_TOKENS), 5)

    @torch.no_grad()
    def decode(adapter_names: Sequence[str]) -> float:
        """Tokens a second of one decoding step for 8 rows."""
        cache = model(input_ids=tokens, use_cache=True, adapter_names=adapter_names).past_key_values

        def step() -> None:
            nonlocal cache
            cache = model(
                input_ids=tokens[:, :1], past_key_values=cache, use_cache=True, adapter_names=adapter_names
            ).past_key_values

        return NUM_ADAPTERS / statistics.median(timed(step, max(3, repetitions // 4)))

    return {
        "hot_swap_from_disk_ms": 1e3 * statistics.median(from_disk),
        "hot_swap_from_memory_ms": 1e3 * statistics.median(from_memory),
        "8_rows_base_tok_s": decode(["__base__"] * NUM_ADAPTERS),
        "8_rows_8_adapters_tok_s": decode([f"a{number}" for number in range(NUM_ADAPTERS)]),
    }


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    repetitions = 8 if parser.parse_args().quick else 40
    # Standard output is the result's alone.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    folder = ensure_model()
    options = ModelOptions(
        model=str(folder),
        model_name=BASE_MODEL,
        num_slots=NUM_ADAPTERS,
        slot_rank=RANK,
        kv_tokens=8192,
        max_sequence_tokens=1024,
        token_buckets=(1, 8, 64),
        cache_dir=default_cache_dir(),
    )
    loaded = load_model(options)
    results: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "startup_s": {stage.name: stage.duration_s for stage in loaded.startup_stages},
        "swap": measure_swap(loaded, repetitions * 2),
        "batches_tok_s": measure_batches(loaded, repetitions * 3),
        "base_only": measure_base_only(options, repetitions * 3),
        "recompiles": loaded.runner.recompiles,
        "peft": measure_peft(folder, repetitions),
    }
    swap, batches, peft, base_only = (results[name] for name in ("swap", "batches_tok_s", "peft", "base_only"))
    results["ratios"] = {
        "PEFT's hot-swap from memory / hot-swap": peft["hot_swap_from_memory_ms"] / swap["hot_swap_ms"],
        "hot-swap / copy of its bytes": swap["hot_swap_ms"] / swap["copy_of_its_bytes_ms"],
        "8 rows with 8 adapters / base": batches["8_rows_8_adapters"] / batches["8_rows_base"],
        "8 rows with 8 adapters / PEFT's": batches["8_rows_8_adapters"] / peft["8_rows_8_adapters_tok_s"],
        "8 rows of base only, with slots / without": base_only["with_slots_tok_s"] / base_only["without_tok_s"],
        "8 rows / 1 row, base": batches["8_rows_base"] / batches["1_row_base"],
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
