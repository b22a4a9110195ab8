"""Fuzzes admission and requests for millions of executions over all cores: `python -m tests.fuzz`, or `make fuzz`.

Prints what was run, writes it to build/fuzz.json, and ends with 1 when there are findings. A finding is a file under
build/fuzz/findings; `python -m tests.fuzz --replay FILE` runs it again.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tools.fuzz.findings import saved
from tools.fuzz.shards import FuzzJob, run_all

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "fuzz"
DEFAULT_RUNS = 5_000_000
SHARES = {"checkpoint": 0.02, "config": 0.08, "request": 0.4, "header": 0.5}
"""Share of all executions by target; the deeper a target, the more one of its executions costs."""
PARTS = {"atheris": 0.1, "mutation": 0.8995, "hypothesis": 0.0005}
"""Share of a target's executions by engine: mutation is the fastest, and starts from the findings of atheris."""


def jobs_of(num_runs: int, num_processes: int, shares: Mapping[str, float], *, guided: bool) -> list[FuzzJob]:
    """Every target's executions, cut for the processes; together at least `num_runs`."""
    parts = PARTS if guided else {"hypothesis": PARTS["hypothesis"], "mutation": PARTS["mutation"] + PARTS["atheris"]}
    return [
        FuzzJob(engine, target, int(num_runs * share * part / num_processes * 1.001) + 2, seed=number)
        for engine, part in parts.items()
        for target, share in shares.items()
        for number in range(num_processes)
    ]


def replay(path: Path) -> None:
    """Run one input of the target that its folder names; what it raises escapes."""
    from tools.fuzz.targets import TARGETS

    outcome = TARGETS[path.parent.name].run(path.read_bytes())
    sys.stdout.write("accepted\n" if outcome.is_accepted else f"refused: {', '.join(sorted(outcome.codes))}\n")


def summary(results: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """The shards' figures by target and engine."""
    targets: dict[str, dict[str, Any]] = {}
    for result in results:
        row = targets.setdefault(result["target"], {}).setdefault(
            result["engine"],
            {"executions": 0, "accepted": 0, "cpu_hours": 0.0, "slowest_ms": 0.0, "grown_mib": 0.0, "codes": {}},
        )
        row["executions"] += result["executions"]
        row["accepted"] += result["accepted"]
        row["cpu_hours"] = round(row["cpu_hours"] + result["seconds"] / 3600, 3)
        for name in ("slowest_ms", "grown_mib", "edges", "features", "corpus"):
            if result.get(name) is not None:
                row[name] = max(row.get(name, 0), result[name])
        for code, count in result["codes"].items():
            row["codes"][code] = row["codes"].get(code, 0) + count
    for rows in targets.values():
        for row in rows.values():
            row["refused"] = row["executions"] - row["accepted"]
            row["codes"] = dict(sorted(row["codes"].items()))
    executions = sum(result["executions"] for result in results)
    return {
        "executions": executions,
        "seconds": round(seconds, 1),
        "executions_s": round(executions / seconds, 1),
        "python": platform.python_version(),
        "atheris": _version_of("atheris"),
        "targets": targets,
    }


def show(document: dict[str, Any]) -> None:
    """A line for each target and engine."""
    for target, rows in document["targets"].items():
        for engine, row in rows.items():
            coverage = f", {row['edges']} edges, {row['features']} features" if "edges" in row else ""
            print(
                f"{target:10} {engine:10} {row['executions']:>9,} executions: {row['accepted']:,} accepted, "
                f"{row['refused']:,} refused with {len(row['codes'])} codes{coverage}; "
                f"slowest {row['slowest_ms']:.0f} ms, memory +{row['grown_mib']:.0f} MiB"
            )
    print(
        f"{document['executions']:,} executions in {document['seconds']:,.0f} s "
        f"({document['executions_s']:,.0f} a second), {len(document['findings'])} findings"
    )


def main() -> int:
    """Returns 1 when there are findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=DEFAULT_RUNS, help="executions in all, at least")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="at a time")
    parser.add_argument("--only", choices=sorted(SHARES), help="give all executions to one target")
    parser.add_argument("--without-atheris", action="store_true", help="mutate without coverage guidance")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one input again and do nothing else")
    options = parser.parse_args()
    if options.replay is not None:
        replay(options.replay)
        return 0
    guided = _version_of("atheris") is not None and not options.without_atheris
    if not guided:
        print(
            "atheris is not used (it has wheels for CPython 3.11 to 3.14 on Linux): "
            "inputs are mutated without coverage guidance"
        )
    for name in ("findings", "shards"):
        shutil.rmtree(BUILD / name, ignore_errors=True)
    started = time.monotonic()
    shares = {options.only: 1.0} if options.only is not None else SHARES
    jobs = jobs_of(options.runs, options.processes, shares, guided=guided)
    results = run_all(jobs, BUILD, options.processes, echo=print)
    document = summary(results, time.monotonic() - started)
    document["findings"] = [str(path.relative_to(ROOT)) for path in saved(BUILD / "findings")]
    (ROOT / "build" / "fuzz.json").write_text(json.dumps(document, indent=2) + "\n")
    show(document)
    for finding in document["findings"]:
        print(f"finding: {finding}")
    if document["executions"] < options.runs:
        print(f"only {document['executions']:,} of {options.runs:,} executions were made; see {BUILD / 'shards'}")
        return 1
    return 1 if document["findings"] else 0


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
