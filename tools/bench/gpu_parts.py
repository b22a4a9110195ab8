"""Measurements of the GPU report: each takes a loaded model and returns plain figures."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hotslot.contract.generation import Sampling
from tools.bench.gpu_model import GpuShape, random_adapter, weight_bytes
from worker_service.engine.messages import PENDING, Segment
from worker_service.model.device_steps import DeviceSteps
from worker_service.model.graph_checks import replays_exactly
from worker_service.model.options import LoadedModel
from worker_service.model.sampling import EXAMPLES, Sampler
from worker_service.model.weights import HostAdapter

WARM_STEPS = 3
ROUNDS = 3
COPIED_BYTES = 2 << 30
"""Bytes of the copy that tells the memory's speed; more than any cache holds."""
GpuFigures = dict[str, Any]


@dataclass
class GpuBench:
    """A loaded model with an adapter in every slot that is measured."""

    loaded: LoadedModel
    shape: GpuShape
    adapter: HostAdapter
    bytes_per_s: float
    """Speed at which the device's memory is read and written."""

    @classmethod
    def of(cls, loaded: LoadedModel, shape: GpuShape, bytes_per_s: float) -> "GpuBench":
        """Fills one slot for each row."""
        bench = cls(loaded, shape, random_adapter(loaded, shape.rank), bytes_per_s)
        for slot in range(shape.rows):
            bench.activate(slot)
        return bench

    @property
    def steps(self) -> DeviceSteps:
        """Steps of the model's runner."""
        steps = self.loaded.runner.device_steps
        assert steps is not None
        return steps

    def activate(self, slot: int) -> None:
        """Copy the adapter into a slot, and wait until it is there."""
        for state in self.loaded.runner.write_slots((slot,), self.adapter):
            if state is PENDING:
                time.sleep(0)
        wait_for(self.steps)

    def rows(self, count: int, with_adapters: bool, sampling: Sampling, step: int = 0) -> list[Segment]:
        """A decoding step; all but the first are fed by the one before."""
        limits, start = self.loaded.limits, self.shape.context + step
        each = limits.num_blocks // self.shape.rows
        fed = range(count) if step else [None] * count
        return [
            Segment(
                (3,), start, tuple(range(row * each, row * each + limits.blocks_for(start + 1))),
                ((row, 1.0),) if with_adapters else (), sampling, fed_by=place,
            )
            for row, place in zip(range(count), fed, strict=True)
        ]  # fmt: skip

    def decode_s(self, count: int, with_adapters: bool, sampling: Sampling | None = None) -> list[float]:
        """Times between the results of steps, one step ahead, as the engine takes them."""
        runner, times = self.loaded.runner, []
        chosen = sampling or Sampling()
        runner.launch(self.rows(count, with_adapters, chosen))
        for step in range(1, WARM_STEPS + self.shape.steps):
            runner.launch(self.rows(count, with_adapters, chosen, step))
            runner.collect()
            times.append(time.perf_counter())
        runner.collect()
        return [after - before for before, after in zip(times[WARM_STEPS - 1 :], times[WARM_STEPS:], strict=False)]


def wait_for(steps: DeviceSteps) -> None:
    """Wait until the device has done all that it was given."""
    if steps.results_R2.device.type == "cuda":
        torch.cuda.synchronize()


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return sorted(values)[len(values) // 2]


def memory_speed(device: torch.device, size_bytes: int = COPIED_BYTES) -> float:
    """Bytes a second that a copy on the device reads and writes."""
    source = torch.ones(size_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copied_s() -> float:
        began_s = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began_s

    return 2 * size_bytes / min(copied_s() for _ in range(2 + ROUNDS))


def captured(bench: GpuBench) -> GpuFigures:
    """Kinds of steps with graphs, why others have none, and graphs against steps on plans that no check has seen."""
    counts, draws = bench.steps.graphs.counts, random.Random(23)
    keys = bench.steps.graphs.keys
    differing = [str(key) for key in keys if not replays_exactly(bench.steps, key, draws)]
    whys = {each.why: each.num_kinds for each in counts.uncaptured if each.num_kinds}
    return {"kinds": len(keys), "differing": differing, "uncaptured": whys}


def bits(bench: GpuBench) -> GpuFigures:
    """Rows whose tokens and highest logits depend on the rows beside them in a step of the same bucket."""
    found: GpuFigures = {}
    few, rows = bench.shape.rows // 2 + 1, bench.shape.rows
    for sampler in Sampler:
        for with_adapters in (False, True):
            results = []
            for count in (few, rows):
                segments = bench.rows(count, with_adapters, EXAMPLES[sampler])
                key = bench.steps.key_of(segments)
                bench.steps.send(segments, key)
                bench.steps.graphs.run(key, bench.steps.compute)
                results.append(bench.steps.results_R2[:few].clone())
            differing = int((results[0] != results[1]).any(-1).sum())
            found[f"{sampler}, {'adapters' if with_adapters else 'base'}"] = {"rows": few, "differing": differing}
    return found


def decoding(bench: GpuBench) -> list[GpuFigures]:
    """Milliseconds a step with graphs and without, and the share of what memory would take at the speed of a copy."""
    found = []
    weights, adapter = weight_bytes(bench.loaded), bench.adapter.size_bytes
    for count in (1, bench.shape.rows):
        for with_adapters in (False, True):
            step_s = median(bench.decode_s(count, with_adapters))
            with bench.steps.graphs.set_aside():
                uncaptured_s = median(bench.decode_s(count, with_adapters))
            needed_s = (weights + adapter * count * with_adapters) / bench.bytes_per_s
            found.append({
                "rows": count, "adapters": count * with_adapters, "step_ms": step_s * 1e3,
                "uncaptured_ms": uncaptured_s * 1e3, "tok_s": count / step_s, "roofline_share": needed_s / step_s,
            })  # fmt: skip
    return found


def sampling(bench: GpuBench) -> GpuFigures:
    """Milliseconds a step of all rows by the program that chooses tokens."""
    return {
        str(sampler): median(bench.decode_s(bench.shape.rows, False, EXAMPLES[sampler])) * 1e3 for sampler in Sampler
    }


def activation(bench: GpuBench) -> GpuFigures:
    """Milliseconds until an adapter is in its slot, beside a plain copy of its bytes to the device."""
    times = []
    for slot in range(min(ROUNDS, bench.shape.rows)):
        began_s = time.perf_counter()
        bench.activate(slot)
        times.append(time.perf_counter() - began_s)
    stretch_N = bench.adapter.stretch_N
    assert stretch_N is not None
    target = torch.empty_like(stretch_N, device=bench.steps.results_R2.device)
    copies = []
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        target.copy_(stretch_N, non_blocking=True)
        wait_for(bench.steps)
        copies.append(time.perf_counter() - began_s)
    return {"adapter_mb": stretch_N.nbytes / 1e6, "activation_ms": median(times) * 1e3, "copy_ms": min(copies) * 1e3}


def stall(bench: GpuBench) -> GpuFigures:
    """Longest step, in milliseconds, while adapters are copied one after the other, and without."""
    runner, chosen = bench.loaded.runner, Sampling()
    few = max(bench.shape.rows // 2, 1)
    quiet_s = bench.decode_s(few, True)
    runner.launch(bench.rows(few, True, chosen))
    writing, times, num_written, slot = None, [], 0, few
    for step in range(1, WARM_STEPS + bench.shape.steps):
        runner.launch(bench.rows(few, True, chosen, step))
        if writing is None:
            slot = few if slot + 1 >= bench.shape.rows else slot + 1
            writing = runner.write_slots((min(slot, bench.shape.rows - 1),), bench.adapter)
        if next(writing, "done") == "done":
            writing, num_written = None, num_written + 1
        runner.collect()
        times.append(time.perf_counter())
    runner.collect()
    for _ in writing or ():
        time.sleep(0)
    gaps_s = [after - before for before, after in zip(times[WARM_STEPS - 1 :], times[WARM_STEPS:], strict=False)]
    return {
        "quiet_longest_ms": max(quiet_s) * 1e3, "quiet_median_ms": median(quiet_s) * 1e3,
        "longest_ms": max(gaps_s) * 1e3, "median_ms": median(gaps_s) * 1e3, "activations": num_written,
    }  # fmt: skip


def prefill(bench: GpuBench) -> GpuFigures:
    """Tokens of a prompt a second, in one step."""
    runner, limits, count = bench.loaded.runner, bench.loaded.limits, bench.shape.prompt
    found = {}
    for name, gates in (("base", ()), ("adapter", ((0, 1.0),))):
        segment = Segment((3,) * count, 0, tuple(range(limits.blocks_for(count))), gates, Sampling())
        times = []
        for _ in range(1 + ROUNDS):
            began_s = time.perf_counter()
            runner.launch([segment])
            runner.collect()
            times.append(time.perf_counter() - began_s)
        found[name] = count / median(times[1:])
    return found


def launches(bench: GpuBench) -> list[GpuFigures]:
    """Kernels of a decoding step, counted by the profiler; on a CPU its operators."""
    found = []
    is_cuda = bench.steps.results_R2.device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU, *[torch.profiler.ProfilerActivity.CUDA] * is_cuda]
    for with_adapters in (False, True):
        segments = bench.rows(bench.shape.rows, with_adapters, Sampling())
        bench.loaded.runner.launch(segments)
        bench.loaded.runner.collect()
        with torch.profiler.profile(activities=kinds) as profile:
            bench.loaded.runner.launch(segments)
            bench.loaded.runner.collect()
            wait_for(bench.steps)
        of_device = torch._C._autograd.DeviceType.CUDA if is_cuda else torch._C._autograd.DeviceType.CPU
        names = [event.name for event in profile.events() if event.device_type == of_device]
        kernels = [name for name in names if not name.startswith(("Memcpy", "Memset", "cuda", "hotslot_step"))]
        found.append({
            "adapters": with_adapters, "counted": "kernels" if is_cuda else "operators", "a_step": len(kernels),
            "a_layer": len(kernels) / bench.shape.num_layers,
        })  # fmt: skip
    return found


PARTS: dict[str, tuple[Callable[[GpuBench], Any], float]] = {
    "captured": (captured, 10.0),
    "bits": (bits, 5.0),
    "decoding": (decoding, 20.0),
    "activation": (activation, 5.0),
    "stall": (stall, 5.0),
    "prefill": (prefill, 5.0),
    "launches": (launches, 10.0),
    "sampling": (sampling, 10.0),
}
"""Measurements in order of worth, with the seconds that must be left to begin one."""
