"""`make gpu-report`: measures a worker's model on a CUDA device within five minutes, and prints the GPU section.

Results go to build/gpu.json; with `--commit` to tools/bench/gpu.json and BENCHMARKS.md, too. `--device cpu --tiny` runs
every part but SmolLM2's on a tiny model, whose figures mean nothing, so that the script works once a device is there.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tools.bench.gpu_exactness import smollm2_exactness
from tools.bench.gpu_model import LLAMA_8B, TINY, GpuShape, make_checkpoint
from tools.bench.gpu_page import section, with_section
from tools.bench.gpu_parts import PARTS, GpuBench, memory_speed
from tools.bench.gpu_results import COMMITTED
from tools.bench.recorded_capture import RecordedCapture
from worker_service.model.graph_checks import capture_steps
from worker_service.model.loading import load_model

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "gpu.json"
NO_DEVICE = "no CUDA device on this machine: nothing was measured (`--device cpu --tiny` tries the script without one)"
NO_DEVICE_STATUS = 2
BUDGET_S = 300.0
EXACTNESS_S = 60.0
"""Seconds that must be left to compile and compare SmolLM2."""
TINY_COPY_BYTES = 1 << 20
IN_MEMORY = Path("/dev/shm")
"""Folder in which a checkpoint of 16 GB is written and read fastest, if it has room."""


class GpuReport:
    """Parts in order, each with its result or why there is none; later ones run whatever happens to earlier ones."""

    def __init__(self, budget_s: float, clock: Callable[[], float], keep: Callable[[dict[str, Any]], None]) -> None:
        """`keep` gets the results after every part, so that a run that is cut off loses nothing."""
        self._clock, self._keep = clock, keep
        self._began_s = clock()
        self._ends_s = self._began_s + budget_s
        self.results: dict[str, Any] = {"parts": {}, "took_s": 0.0}

    def run(self, name: str, needed_s: float, measure: Callable[[], Any]) -> Any:
        """Run a part if there is time for it; returns its result, None where there is none."""
        began_s, result = self._clock(), None
        left_s = self._ends_s - began_s
        if left_s < needed_s:
            part: dict[str, Any] = {"why": f"{left_s:.0f} s were left, and it may take {needed_s:.0f}"}
        else:
            try:
                result = measure()
                part = {"result": result, "took_s": self._clock() - began_s}
            except Exception as exc:  # noqa: BLE001 (told in the report; the other parts are worth having)
                part = {"why": f"{type(exc).__name__}: {exc}"}
        self.results["parts"][name] = part
        self.results["took_s"] = self._clock() - self._began_s
        self._keep(self.results)
        print(f"{name}: {part.get('why') or format(part['took_s'], '.1f') + ' s'}", file=sys.stderr)
        return result


def measure(report: GpuReport, shape: GpuShape, device: torch.device, folder: Path) -> None:
    """All parts on one device; SmolLM2 comes last, since the others are worth more."""
    is_cuda = device.type == "cuda"
    speed = memory_speed(device) if is_cuda else memory_speed(device, TINY_COPY_BYTES)
    name = torch.cuda.get_device_name(device) if is_cuda else device.type
    report.results |= {
        "date": datetime.now(UTC).date().isoformat(),
        "model": shape.name,
        "machine": {"device": name, "torch": torch.__version__, "copy_gb_s": speed / 1e9},
    }
    benches: list[GpuBench] = []

    def start() -> dict[str, float]:
        make_checkpoint(shape, folder, device)
        if is_cuda:
            torch.cuda.empty_cache()
        loaded = load_model(shape.model_options(folder, str(device)))
        assert loaded.runner.device_steps is not None
        if not is_cuda:
            capture_steps(loaded.runner.device_steps, RecordedCapture())
        benches.append(GpuBench.of(loaded, shape, speed))
        return {stage.name: stage.duration_s for stage in loaded.startup_stages}

    report.run("start", 0.0, start)
    shutil.rmtree(folder, ignore_errors=True)
    if benches:
        bench = benches[0]
        before, num_graphs = bench.loaded.runner.addresses(), len(bench.steps.graphs.keys)
        for part, (run, needed_s) in PARTS.items():
            report.run(part, needed_s, lambda run=run: run(bench))  # type: ignore[misc]

        def unchanged() -> dict[str, Any]:
            moved = sum(before[key] != address for key, address in bench.loaded.runner.addresses().items())
            recorded = len(bench.steps.graphs.keys) - num_graphs
            return {"recompiles": bench.loaded.runner.recompiles, "recorded_again": recorded, "moved_tensors": moved}

        report.run("unchanged", 0.0, unchanged)
    if is_cuda:
        report.run("exactness", EXACTNESS_S, lambda: smollm2_exactness(str(device)))


def scratch_folder(size_bytes: int) -> str | None:
    """Folder for a checkpoint of that size; None for the system's own folder."""
    has_room = IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free > 2 * size_bytes
    return str(IN_MEMORY) if has_room else None


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="a tiny model; needed on a CPU")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="no part begins that may end after it")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--commit", action="store_true", help="write tools/bench/gpu.json and BENCHMARKS.md")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(NO_DEVICE, file=sys.stderr)
        return NO_DEVICE_STATUS
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu needs --tiny")
    if options.commit and (options.tiny or options.device == "cpu"):
        parser.error("--commit is for a whole model on a CUDA device")

    def keep(results: dict[str, Any]) -> None:
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

    shape = TINY if options.tiny else LLAMA_8B
    report = GpuReport(options.budget_s, time.monotonic, keep)
    size_bytes = 0 if options.tiny else 16 << 30
    with tempfile.TemporaryDirectory(dir=scratch_folder(size_bytes), prefix="hotslot-gpu-") as scratch:
        measure(report, shape, torch.device(options.device), Path(scratch) / "model")
    print("\n".join(section(report.results)))
    if options.commit:
        COMMITTED.write_text(json.dumps(report.results, indent=2) + "\n", encoding="utf-8")
        page = ROOT / "BENCHMARKS.md"
        page.write_text(with_section(page.read_text(encoding="utf-8"), report.results), encoding="utf-8")
    return 0 if "result" in report.results["parts"]["start"] else 1


if __name__ == "__main__":
    sys.exit(main())
