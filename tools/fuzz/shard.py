"""One process that fuzzes one target with one engine: `python -m tools.fuzz.shard`, started by `tests.fuzz`."""

import argparse
import importlib
import json
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.fuzz.box import Box
from tools.fuzz.findings import MAX_KINDS, Findings

INSTRUMENTED = {
    "checkpoint": ("hotslot.formats.safetensors_header", "hotslot.formats.strict_json", "store_service.admission"),
    "request": ("shared.server.wire_scan", "worker_service.front", "worker_service.templates"),
}
"""Modules that atheris looks into: those of the targets of admission, and those of requests."""
IMPORTED = {
    "checkpoint": ("store_service.admission.admit", "store_service.admission.report"),
    "request": (
        "shared.server.wire_scan", "worker_service.front.prompts", "worker_service.front.inference_servicer",
        "worker_service.front.answer", "worker_service.templates.host",
    ),
}  # fmt: skip
MAX_CPU_NS = 2_000_000_000
"""Most processor time of one small input; everything that admission and the front do is linear in it."""
MAX_GROWTH_BYTES = 2 * 1024**3
"""Largest growth of the address space while fuzzing; beyond it an allocation fails, and that is a finding."""
REPORT_EVERY_S = 5.0


def main() -> int:
    """Runs the inputs; 0 unless the process could not go on. Findings are files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="for the recorder and the report")
    parser.add_argument("--findings", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # Python's own, on patterns that PEFT compiles for the comparison.
    if options.engine == "atheris":
        import atheris

        kind = options.target if options.target in INSTRUMENTED else "checkpoint"
        with atheris.instrument_imports(include=list(INSTRUMENTED[kind]), enable_loader_override=False):
            for name in IMPORTED[kind]:
                importlib.import_module(name)
    from tools.fuzz import engines
    from tools.fuzz.targets import TARGETS

    target = TARGETS[options.target]
    target.run(target.seeds()[0])  # What is imported on first use is no input's fault.
    resource.setrlimit(resource.RLIMIT_AS, (_address_space_bytes() + MAX_GROWTH_BYTES, resource.RLIM_INFINITY))
    shard = Shard(target.run, options.folder, options.findings, options.runs)
    match options.engine:
        case "atheris":
            engines.guide(target, shard.run, options.runs, options.seed, options.corpus)
        case "hypothesis":
            engines.generate(target, shard.run, options.runs, options.seed)
        case _:
            engines.mutate(target, shard.run, options.runs, options.seed, engines.found_in(options.corpus))
    shard.write_report()
    return 0


class Shard:
    """Runs inputs and keeps the books; nothing that an input does ends it."""

    def __init__(self, run: Callable[[bytes], Any], folder: Path, findings: Path, num_runs: int) -> None:
        self._target_run = run
        self._box = Box(folder / "box")
        self._report = folder / "report.json"
        self._findings = Findings(findings)
        self._num_runs = num_runs
        self._num_done = 0
        self._codes: Counter[str] = Counter()
        self._reported_s = time.monotonic()
        self._start_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def run(self, data: bytes) -> None:
        """One input."""
        self._box.begin(data)
        begun_ns = time.thread_time_ns()
        is_accepted = False
        try:
            outcome = self._target_run(data)
            is_accepted = outcome.is_accepted
            self._codes.update(outcome.codes)
        except Exception as exc:  # noqa: BLE001 - Whatever escapes is what is looked for.
            self._findings.add_error(data, exc)
        cpu_ns = time.thread_time_ns() - begun_ns
        self._box.end(is_accepted, cpu_ns)
        if cpu_ns > MAX_CPU_NS:
            self._findings.add(data, "slow", f"{cpu_ns / 1e9:.1f} s of CPU time")
        self._num_done += 1
        if self._num_done % 256 == 0 and time.monotonic() - self._reported_s > REPORT_EVERY_S:
            self.write_report()
        if self._num_done == self._num_runs or self._findings.num_kinds > MAX_KINDS:
            self.write_report()
            if self._findings.num_kinds > MAX_KINDS:
                sys.exit(f"more than {MAX_KINDS} kinds of findings")

    def write_report(self) -> None:
        """Write the figures that only this process knows."""
        self._reported_s = time.monotonic()
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        report = {"codes": dict(self._codes), "grown_mib": round((peak_kib - self._start_kib) / 1024, 1)}
        self._report.write_text(json.dumps(report))


def _address_space_bytes() -> int:
    """Bytes that the process has mapped; on systems that do not tell, a size that no shard reaches."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 64 * 1024**3


if __name__ == "__main__":
    sys.exit(main())
