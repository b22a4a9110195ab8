"""`make bench`: runs every part in a process of its own; writes build/bench.json and BENCHMARKS.md, with plots.

Parts that were not run keep their figures of before if those are from this kind of machine. `--check` writes nothing
that is committed: it compares the ratios with the committed ones, and fails where one is worse.
"""

import argparse
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tools.bench import check
from tools.bench.cases import CASES, RunLevel
from tools.bench.figures import BenchFigures
from tools.bench.gpu_results import committed_gpu
from tools.bench.inputs import adapter_folders, gguf_model
from tools.bench.machine import busy_share, machine, machine_type
from tools.bench.parts import PARTS, BenchPart
from tools.bench.peers.environments import ENVIRONMENTS
from tools.bench.plots import plot_peers, plot_targets
from tools.bench.report import render
from tools.bench.targets import lines
from worker_service.demo_model import default_cache_dir, ensure_model

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "bench.json"
PREPARED_WITHIN_S = 3600.0


def main() -> None:
    """Measure, then write or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--level", type=RunLevel, choices=list(RunLevel), default=RunLevel.MAIN)
    names = [part.name for part in PARTS]
    parser.add_argument("--only", choices=names, nargs="+", default=names, help="the other parts keep what they have")
    parser.add_argument("--check", action="store_true", help="compare the ratios with the committed ones")
    parser.add_argument("--prepare", action="store_true", help="fetch and build everything that a run needs, no more")
    parser.add_argument("--report", action="store_true", help="write the report from build/bench.json, no more")
    arguments = parser.parse_args()
    record = machine()
    kind = machine_type(record)
    before = check.committed(kind)
    if arguments.check and before is None:
        sys.exit(f"nothing to compare with: no ratios of {kind} are committed; `make bench` writes them")
    if not arguments.report:
        prepare(arguments.level)
    if arguments.prepare:
        command = [sys.executable, "-m", "tools.bench.side_by_side", "--prepare", "--level", arguments.level.value]
        subprocess.run(command, cwd=ROOT, check=True, timeout=PREPARED_WITHIN_S)
        return
    failed: list[str] = []
    results = earlier(kind) | {"date": today(), "level": arguments.level.value, "machine": record, "kind": kind}
    for part in PARTS:
        if not arguments.report and part.name in arguments.only and arguments.level in part.arguments:
            try:
                results["parts"][part.name] = run(part, arguments.level)
            except (subprocess.SubprocessError, json.JSONDecodeError) as exc:
                # The others are measured all the same, and what was measured before is kept.
                print(f"failed: {part.name}: {exc}", file=sys.stderr)
                failed.append(part.name)
                continue
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if arguments.check:
        assert before is not None
        compare(results, before)
    else:
        write(results)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def prepare(level: RunLevel) -> None:
    """Everything that is made once: models, adapters, environments of the peers."""
    ensure_model()
    inputs = default_cache_dir() / "bench"
    for form in ("bf16", "q8_0"):
        gguf_model(form, inputs)
    ranks = {case.rank for case in CASES[level]}
    for rank in ranks:
        adapter_folders(rank, max(case.adapters for case in CASES[level] if case.rank == rank), inputs)
    for environment in ENVIRONMENTS:
        if problem := environment.install():
            print(f"skipped: {problem}", file=sys.stderr)


def earlier(kind: str) -> dict[str, Any]:
    """Results of an earlier run on this kind of machine, else none."""
    if RESULTS.exists():
        found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
        if found.get("kind") == kind:
            return found
    return {"parts": {}}


def run(part: BenchPart, level: RunLevel) -> dict[str, Any]:
    """One part's result, with when, how and at which commit it was measured, and how busy the machine was before."""
    busy = busy_share()
    print(f"measuring: {part.name} (others take {busy:.0%} of the machine)", file=sys.stderr)
    began_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", part.module, *part.arguments[level]],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=part.within_s,
    )
    took_s = time.perf_counter() - began_s
    print(f"measured: {part.name}, {took_s:.0f} s", file=sys.stderr)
    return {
        "date": today(), "level": level.value, "commit": tree(), "busy_before": busy, "took_s": took_s,
        "result": json.loads(done.stdout),
    }  # fmt: skip


def write(results: dict[str, Any]) -> None:
    """The report, its plots, and the ratios to commit."""
    figures = BenchFigures(results)
    found = lines(figures)
    plot_targets(found, ROOT / "docs" / "bench-targets.svg")
    plot_peers(figures, ROOT / "docs" / "bench-model.svg")
    (ROOT / "BENCHMARKS.md").write_text(render(results | {"gpu": committed_gpu()}), encoding="utf-8")
    ratios = check.commit(results["kind"], check.ratios(found))
    print(f"written: {RESULTS.relative_to(ROOT)}, BENCHMARKS.md, {ratios.relative_to(ROOT)}", file=sys.stderr)


def compare(results: dict[str, Any], before: dict[str, float]) -> None:
    """Print the ratios that are worse than the committed ones, and fail if there are any."""
    found = lines(BenchFigures(results))
    problems = list(check.worse(found, before))
    print(f"{len(check.ratios(found).keys() & before.keys())} ratios compared, {len(problems)} worse", file=sys.stderr)
    if problems:
        sys.exit("\n".join(problems))


def today() -> str:
    """Date of the run."""
    return datetime.now(UTC).date().isoformat()


def tree() -> str:
    """Commit that is measured, marked where the tree differs from it; empty outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=8", "--exclude", "*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False, text=True).stdout.strip()


if __name__ == "__main__":
    main()
