"""Measures peers side by side: the same rows of every peer in turn, round by round.

`python -m tools.bench.side_by_side --level quick` prints one JSON object. All peers of a group of cases run at once and
wait in a read while another one is measured. A peer that cannot be had is skipped with the reason.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from tools.bench.cases import CASES, Case, CaseKind, RunLevel
from tools.bench.inputs import adapter_folders, gguf_model, prompt
from tools.bench.peers.process import PeerFailedError, PeerProcess, own_python
from tools.bench.peers.protocol import PeerSettings, PromptRow, TimedAnswer
from tools.bench.peers.roster import PeerSpec
from tools.bench.rates import TooFewTokensError, decode_figures, prompt_figures, step_s
from worker_service.demo_model import default_cache_dir, ensure_model

ROOT = Path(__file__).resolve().parents[2]
SPARE_TOKENS = 128
"""Room for the answer after the longest prompt."""
ANSWER_WITHIN_S = 240.0


@dataclass(frozen=True)
class RoundPace:
    """Length of the measurements."""

    rounds: int
    round_s: float
    """Seconds that a peer decodes in a round, about."""
    min_tokens: int = 8
    max_tokens: int = 96
    within_s: float = float("inf")
    """Time for all cases without the peers' starts; what is left then is skipped."""

    def tokens_for(self, seconds_a_step: float) -> int:
        """Tokens a row of a round, from how long a step took in the warm-up."""
        return int(min(self.max_tokens, max(self.min_tokens, self.round_s / seconds_a_step)))


PACES = {
    RunLevel.QUICK: RoundPace(3, 0.7, max_tokens=32, within_s=150.0),
    RunLevel.MAIN: RoundPace(3, 1.0, max_tokens=64, within_s=600.0),
    RunLevel.FULL: RoundPace(7, 3.0),
}
WARM_UP_TOKENS = 6
PROMPT_TOKENS = 2
"""Tokens of an answer in a prompt case: the first one ends what is timed."""


def rows_of(case: Case, seed: int) -> list[PromptRow]:
    """Rows of a case; another seed has prompts that no prefix cache knows."""
    chosen = [None if not case.adapters else number % case.adapters for number in range(case.rows)]
    return [PromptRow(prompt(case.context, 1000 * seed + n), adapter) for n, adapter in enumerate(chosen)]


@dataclass
class Group:
    """The peers of some cases, running."""

    cases: Sequence[Case]
    threads: int
    running: dict[str, PeerProcess] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def start(self, exit_stack: ExitStack) -> None:
        """Start every peer that a case names; all load at once, and then one after the other is waited for."""
        specs = list(dict.fromkeys(spec for case in self.cases for spec in case.peers))
        waiting = []
        for spec in specs:
            problem = spec.environment.install() if spec.environment is not None else ""
            if problem:
                self.skipped[spec.name] = problem
            else:
                waiting.append((spec, exit_stack.enter_context(self._launch(spec))))
        for spec, process in waiting:
            try:
                self.running[spec.name] = process.wait_ready(spec.ready_within_s)
                print(f"  {spec.name}: ready after {process.started_s:.1f} s", file=sys.stderr)
            except PeerFailedError as exc:
                self.skip(spec.name, exc)

    def skip(self, name: str, error: Exception) -> None:
        """Go on without a peer."""
        print(f"  {error}", file=sys.stderr)
        self.skipped[name] = str(error).splitlines()[0]
        self.running.pop(name, None)

    def _launch(self, spec: PeerSpec) -> PeerProcess:
        cases = [case for case in self.cases if spec in case.peers]
        rank = cases[0].rank
        num_adapters = max(case.adapters for case in cases) if spec.with_adapters else 0
        inputs = default_cache_dir() / "bench"
        settings = PeerSettings(
            model=str(ensure_model()),
            gguf=str(gguf_model(spec.gguf, inputs)),
            adapters=[str(folder) for folder in adapter_folders(rank, num_adapters, inputs)],
            rank=rank,
            threads=self.threads,
            max_rows=max(case.rows for case in cases),
            max_tokens=max(case.context for case in cases) + SPARE_TOKENS,
            cache_dir=str(default_cache_dir()),
            options=dict(spec.options),
        )
        python = str(spec.environment.python) if spec.environment is not None else own_python()
        name = re.sub(r"[^\w.]+", "-", spec.name)
        log = ROOT / "build" / "bench" / f"{name}-{self.threads}.log"
        return PeerProcess(spec.name, spec.module, python, settings, log)


def measure_case(case: Case, group: Group, pace: RoundPace) -> dict[str, Any]:
    """Warm every peer up, then take rounds in turn, each beginning with another peer."""
    names = [spec.name for spec in case.peers if spec.name in group.running]
    answers: dict[str, list[TimedAnswer]] = {name: [] for name in names}
    tokens: dict[str, int] = {}

    def ask(name: str, seed: int, num_tokens: int) -> TimedAnswer | None:
        try:
            return group.running[name].generate(rows_of(case, seed), num_tokens, ANSWER_WITHIN_S)
        except PeerFailedError as exc:
            group.skip(name, exc)
            return None

    for name in names:
        if (warm := ask(name, 0, WARM_UP_TOKENS)) is not None:
            tokens[name] = PROMPT_TOKENS if case.kind is CaseKind.PROMPT else pace.tokens_for(step_s(warm))
    rounds = max(2, pace.rounds // 2) if case.kind is CaseKind.PROMPT else pace.rounds
    for number in range(rounds):
        for name in turned(list(tokens), number):
            seed = 1 + number if case.kind is CaseKind.PROMPT else 0
            if name in group.running and (answer := ask(name, seed, tokens[name])) is not None:
                answers[name].append(answer)
    peers: dict[str, dict[str, object]] = {}
    skipped = {spec.name: group.skipped[spec.name] for spec in case.peers if spec.name in group.skipped}
    for name, found in answers.items():
        try:
            if len(found) == rounds:
                peers[name] = figures(case, found)
        except TooFewTokensError as exc:
            skipped[name] = str(exc)
    return {
        "name": case.name,
        "case": {
            "rows": case.rows, "adapters": case.adapters, "context": case.context, "kind": case.kind.value,
            "rank": case.rank, "threads": group.threads, "all_cores": case.all_cores,
        },
        "peers": peers,
        "skipped": skipped,
    }  # fmt: skip


def figures(case: Case, answers: Sequence[TimedAnswer]) -> dict[str, object]:
    """Figures of one peer in one case."""
    if case.kind is CaseKind.PROMPT:
        return prompt_figures(answers, case.rows * case.context)
    return decode_figures(answers)


def turned(names: list[str], number: int) -> list[str]:
    """The names, beginning with another one each round."""
    at = number % len(names) if names else 0
    return names[at:] + names[:at]


def skipped(case: Case, group: Group, why: str) -> dict[str, Any]:
    """Result of a case that was not measured."""
    nobody = replace(group, running={}, skipped={spec.name: why for spec in case.peers})
    return measure_case(case, nobody, PACES[RunLevel.QUICK])


def prepare(cases: Sequence[Case]) -> None:
    """Start every peer once by itself, so that its code is compiled and kept, and end it."""
    for group in groups(cases, len(os.sched_getaffinity(0))):
        for spec in dict.fromkeys(spec for case in group.cases for spec in case.peers):
            cases_of_it = [replace(case, peers=(spec,)) for case in group.cases if spec in case.peers]
            alone = Group(cases_of_it, group.threads)
            with ExitStack() as exit_stack:
                alone.start(exit_stack)


def measure(cases: Sequence[Case], pace: RoundPace) -> dict[str, Any]:
    """All cases, group by group."""
    cores = len(os.sched_getaffinity(0))
    results: list[dict[str, Any]] = []
    versions: dict[str, dict[str, str]] = {}
    left_s = pace.within_s
    for group in groups(cases, cores):
        print(f"group: {group.threads} threads, rank {group.cases[0].rank}", file=sys.stderr)
        with ExitStack() as exit_stack:
            group.start(exit_stack)
            versions |= {name: process.versions for name, process in group.running.items()}
            for case in group.cases:
                began_s = time.perf_counter()
                if left_s <= 0:
                    results.append(skipped(case, group, f"no time was left of {pace.within_s:g} s for all cases"))
                    continue
                results.append(measure_case(case, group, pace))
                took_s = time.perf_counter() - began_s
                left_s -= took_s
                print(f"  {case.name}: {took_s:.1f} s", file=sys.stderr)
    return {"rounds": pace.rounds, "cores": cores, "versions": versions, "cases": results}


def groups(cases: Sequence[Case], cores: int) -> Iterator[Group]:
    """Cases that the same processes answer, in the order in which groups first occur."""
    order = {group: number for number, group in enumerate(dict.fromkeys(case.group for case in cases))}
    ordered = sorted(cases, key=lambda case: order[case.group])
    for (all_cores, _), found in groupby(ordered, key=lambda case: case.group):
        yield Group(list(found), cores if all_cores else 1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--level", type=RunLevel, choices=list(RunLevel), default=RunLevel.MAIN)
    parser.add_argument("--cases", default="", help="only cases whose name contains this text")
    parser.add_argument("--peers", default="", help="only peers whose name contains one of these texts, by commas")
    parser.add_argument("--round-s", type=float, help="seconds that a peer decodes in a round")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--prepare", action="store_true", help="start every peer once, so that its code is compiled")
    parser.add_argument("--uncompiled", action="store_true", help="hotslot uncompiled: it starts sooner, for a trial")
    arguments = parser.parse_args()
    pace = PACES[arguments.level]
    pace = replace(pace, rounds=arguments.rounds or pace.rounds, round_s=arguments.round_s or pace.round_s)

    def trial(spec: PeerSpec) -> PeerSpec:
        is_ours = arguments.uncompiled and spec.name.startswith("hotslot")
        return replace(spec, options=(*spec.options, ("compile", "false"))) if is_ours else spec

    wanted = [text for text in arguments.peers.split(",") if text] or [""]
    cases = [
        replace(case, peers=tuple(trial(spec) for spec in case.peers if any(text in spec.name for text in wanted)))
        for case in CASES[arguments.level]
        if arguments.cases in case.name
    ]
    cases = [case for case in cases if case.peers]
    if arguments.prepare:
        prepare(cases)
    else:
        print(json.dumps(measure(cases, pace)))


if __name__ == "__main__":
    main()
