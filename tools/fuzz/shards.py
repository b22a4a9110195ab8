"""Runs shards a few at a time and watches them: one that hangs is killed, one that dies leaves its input."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.fuzz.box import Box
from tools.fuzz.findings import Findings

MAX_INPUT_S = 60.0
"""Wall time of one input, on a machine that may be busy with other things."""
POLL_S = 0.25
SAY_EVERY_S = 30.0
_COVERAGE = re.compile(r"cov: (?P<edges>\d+) ft: (?P<features>\d+) corp: (?P<corpus>\d+)/")


@dataclass(frozen=True, slots=True)
class FuzzJob:
    """Work of one shard."""

    engine: str
    target: str
    num_runs: int
    seed: int

    @property
    def name(self) -> str:
        """Unique in a run."""
        return f"{self.target}-{self.engine}-{self.seed}"


class _Running:
    """A shard's process with its recorder."""

    def __init__(self, job: FuzzJob, build: Path) -> None:
        self.job = job
        self.folder = build / "shards" / job.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.box = Box(self.folder / "box")
        self.findings = build / "findings" / job.target
        self.started_s = self._moved_s = time.monotonic()
        self._num_seen = 0
        arguments = {
            "--engine": job.engine, "--target": job.target, "--runs": job.num_runs, "--seed": job.seed,
            "--folder": self.folder, "--findings": self.findings, "--corpus": build / "corpus" / job.target,
        }  # fmt: skip
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tools.fuzz.shard", *(str(part) for pair in arguments.items() for part in pair)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=Path(__file__).resolve().parents[2],
            )

    def has_ended(self) -> bool:
        """Tell whether the process is gone; kills it when its input takes for ever, and keeps the input that it died
        of.
        """
        state = self.box.read()
        if state.num_executions != self._num_seen:
            self._num_seen, self._moved_s = state.num_executions, time.monotonic()
        if time.monotonic() - self._moved_s > MAX_INPUT_S and state.num_executions and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            if state.begun_ns:
                Findings(self.findings).add(state.data, "hang", f"no end after {MAX_INPUT_S:.0f} s")
            return True
        if self.process.poll() is None:
            return False
        state = self.box.read()
        if state.begun_ns:
            Findings(self.findings).add(state.data, "crash", f"the process ended with {self.process.returncode}")
        return True

    def result(self) -> dict[str, Any]:
        """The shard's figures."""
        state, report = self.box.read(), self.folder / "report.json"
        found = {
            "engine": self.job.engine,
            "target": self.job.target,
            "executions": state.num_executions,
            "accepted": state.num_accepted,
            "seconds": time.monotonic() - self.started_s,
            "slowest_ms": round(state.slowest_ns / 1e6, 1),
            "codes": {},
        }
        if report.exists():
            found |= json.loads(report.read_text())
        coverage = list(_COVERAGE.finditer((self.folder / "log").read_text(errors="replace")))
        if coverage:
            found |= {name: int(value) for name, value in coverage[-1].groupdict().items()}
        return found


def run_all(
    jobs: list[FuzzJob], build: Path, num_processes: int, echo: Callable[[str], object]
) -> list[dict[str, Any]]:
    """Run the jobs, `num_processes` at a time; returns their figures."""
    waiting, running, results = list(reversed(jobs)), list[_Running](), list[dict[str, Any]]()
    said_s = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < num_processes:
                running.append(_Running(waiting.pop(), build))
            time.sleep(POLL_S)
            for shard in [shard for shard in running if shard.has_ended()]:
                running.remove(shard)
                results.append(shard.result())
                last = results[-1]
                rate = last["executions"] / last["seconds"]
                echo(f"{shard.job.name}: {last['executions']:,} executions, {rate:,.0f} a second")
            if time.monotonic() - said_s > SAY_EVERY_S:
                said_s = time.monotonic()
                for shard in running:
                    echo(f"  {shard.job.name}: {shard.box.read().num_executions:,} of {shard.job.num_runs:,}")
    finally:
        for shard in running:
            shard.process.kill()
            shard.process.wait()
    return results
