"""`make bench`: runs every benchmark in a process of its own; writes build/bench.json and BENCHMARKS.md."""

import argparse
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl

from worker_service.demo_model import BASE_MODEL

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("model", "serving", "store", "forwarding")
TARGETS = {
    "PEFT's hot-swap from memory / hot-swap": "≥ 15",
    "hot-swap / copy of its bytes": "≤ 3",
    "8 rows with 8 adapters / base": "≥ 0.85",
    "8 rows with 8 adapters / PEFT's": "≥ 20",
    "8 rows of base only, with slots / without": "≥ 0.98",
    "inter-token p99 while swapping / without": "≤ 1.5",
    "median TTFT at twice the slots, uniform / resident": "≤ 2",
    "median TTFT at twice the slots, Zipf / resident": "≤ 2",
}


def main() -> None:
    """Measure, then write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="the other parts keep what they have")
    arguments = parser.parse_args()
    quick = ["--quick"] if arguments.quick else []
    written = ROOT / "build" / "bench.json"
    results: dict[str, Any] = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
    results |= {"date": datetime.now(UTC).date().isoformat(), "machine": machine()}
    for part in arguments.only:
        print(f"measuring: {part}", file=sys.stderr)
        done = subprocess.run(
            [sys.executable, "-m", f"tests.bench.{part}", *quick],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        results[part] = json.loads(done.stdout)
        # A part that fails later costs nothing of what was measured before it.
        written.parent.mkdir(exist_ok=True)
        written.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    missing = [part for part in PARTS if part not in results]
    if missing:
        sys.exit(f"written: build/bench.json; BENCHMARKS.md needs {', '.join(missing)} as well")
    plot(results, ROOT / "docs" / "bench-model.svg")
    (ROOT / "BENCHMARKS.md").write_text(render(results), encoding="utf-8")
    print("written: build/bench.json, BENCHMARKS.md, docs/bench-model.svg", file=sys.stderr)


def machine() -> str:
    """Description of the machine, as far as that decides the figures."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
        return f"{sum(line.startswith('processor') for line in lines)} × {model}"
    return model


def render(results: dict[str, Any]) -> str:
    """BENCHMARKS.md."""
    model, serving, store = results["model"], results["serving"], results["store"]
    ratios = model["ratios"] | serving["ratios"]
    lines = [
        "# Benchmarks",
        "",
        f"Written by `make bench` on {results['date']}, {results['machine']}, torch {model['torch']}, "
        f"{model['threads']} threads, {BASE_MODEL} in bf16. Medians; compare the ratios, not the absolute figures.",
        "",
        "| ratio | found | target |",
        "|---|---|---|",
        *(f"| {name} | {value:.2f} | {TARGETS.get(name, '')} |" for name, value in ratios.items()),
        "",
        "![tokens a second](docs/bench-model.svg)",
        "",
        "| the model | |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {value:.1f} tok/s |" for name, value in model["batches_tok_s"].items()),
        *(f"| base only, {name.replace('_', ' ')} | {value:.1f} |" for name, value in model["base_only"].items()),
        *(f"| PEFT, {name.replace('_', ' ')} | {value:.1f} |" for name, value in model["peft"].items()),
        *(f"| {name.replace('_', ' ')} | {value:.2f} |" for name, value in model["swap"].items()),
        *(f"| start: {name.replace('_', ' ')} | {value:.1f} s |" for name, value in model["startup_s"].items()),
        f"| recompiles | {model['recompiles']} |",
        *(f"| {name} | {value} |" for name, value in flat(serving["swaps_beside_rows"])),
        *(f"| {name} | {value} |" for name, value in flat(serving["more_adapters_than_slots"])),
        "",
        "| the store (targets: verified streams ≥ 0.8 of the best raw one, no callback of the loop above 5 ms) | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in flat(store)),
        "",
        "| a hop between workers (target: ≤ 1 ms on the first token, ≥ 0.9 of the throughput) | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in flat(results["forwarding"])),
        "",
    ]
    return "\n".join(lines)


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested results as rows."""
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in flat(inner, f"{prefix} {key}".strip().replace("_", " "))]
    return [(prefix, f"{value:.3g}" if isinstance(value, float) else str(value))]


def plot(results: dict[str, Any], path: Path) -> None:
    """Bars of tokens a second, ours beside PEFT's."""
    mpl.use("svg")
    from matplotlib import pyplot

    model = results["model"]
    bars = {name.replace("_", " "): value for name, value in model["batches_tok_s"].items()}
    bars["PEFT 8 rows base"] = model["peft"]["8_rows_base_tok_s"]
    bars["PEFT 8 rows 8 adapters"] = model["peft"]["8_rows_8_adapters_tok_s"]
    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    axes.barh(list(bars), list(bars.values()), color=["#2a6f97"] * (len(bars) - 2) + ["#bbbbbb"] * 2)
    axes.invert_yaxis()
    axes.set_xlabel("tokens a second")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
