"""`python -m tools.bench.isolation`: what one tenant's floods do to the time that another waits for its first answer.

A worker over the echo model, whose steps take 10 ms, a store and a gateway, each a process that knows its callers, on
loopback; each flood comes from a process of its own. After each comes its control: the same flood against a stand-in
(`stand_ins.py`), so that the quiet tenant loses only the processor time that the attacker takes. Prints a table, and
exits with 1 where a quiet tenant waits for more than 1.2 times as long (p99) as in the control, is refused, or anybody
hears of a fault of ours. `tests/hostile` has the short forms.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bench.floods import FLOODS, SENT
from tools.bench.isolated_services import ROOT, FloodedService, flooded_services

MOST = 1.2
"""Bound of the quotient of the p99 while a flood lasts and while its control does."""
CALM_S, SETTLE_S = 4.0, 2.0
START_S = 90.0
"""Longest time until a process of ours says that it has begun."""


@dataclass(frozen=True)
class Flooded:
    """Figures of one flood."""

    service: str
    flood: str
    calm_ms: float
    while_ms: float
    calm_p50_ms: float
    while_p50_ms: float
    answered: int
    refused: int
    held: Mapping[str, int]
    """Memory, descriptors and disk of the service while the flood lasts, and calls that ended as a fault of ours."""
    before: Mapping[str, int]
    outcomes: Mapping[str, float]
    """Calls a second by how they ended."""
    control_ms: float | None = None
    control_p50_ms: float | None = None
    control_outcomes: Mapping[str, float] | None = None
    calm_cpu_ms_per_s: float = 0.0
    while_cpu_ms_per_s: float = 0.0
    """Processor time of the service: without the flood, and while it lasts."""

    @property
    def ratio(self) -> float:
        """p99 while the flood lasts by that without it."""
        return self.while_ms / self.calm_ms if self.calm_ms else float("inf")

    @property
    def added_ratio(self) -> float:
        """p99 while the flood lasts by that of its control, or of calm where that is more: what the service adds."""
        alone_ms = max(self.calm_ms, self.control_ms or 0.0)
        return self.while_ms / alone_ms if alone_ms else float("inf")

    @property
    def is_met(self) -> bool:
        """True where the quiet tenant hardly notices that the service is flooded."""
        faults = self.held["internal"] - self.before["internal"]
        return self.added_ratio <= MOST and not self.refused and not faults


def p99_ms(times: list[float]) -> float:
    """99th percentile, in milliseconds."""
    ordered = sorted(times)
    return round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] * 1e3, 2) if ordered else float("inf")


def p50_ms(times: list[float]) -> float:
    """Median, in milliseconds."""
    return round(sorted(times)[len(times) // 2] * 1e3, 2) if times else float("inf")


class RunningFlood:
    """A flood by another process, which tells once a second what became of its calls."""

    def __init__(self, told: asyncio.StreamReader) -> None:
        self._told = told
        self._lines: list[Mapping[str, int]] = []
        self._begun = asyncio.Event()

    async def read(self) -> None:
        """Read what it tells, until it is ended."""
        while line := await self._told.readline():
            self._lines.append(json.loads(line))
            self._begun.set()

    async def settled(self) -> None:
        """Wait until it has begun, and its first calls, which a pace lets through, are over."""
        async with asyncio.timeout(START_S):
            await self._begun.wait()
        await asyncio.sleep(SETTLE_S)

    def per_s(self) -> dict[str, float]:
        """Outcomes a second since its first calls."""
        lines = self._lines[1:] if len(self._lines) > 2 else self._lines
        span_s = max(1, len(lines) - 1)
        first = lines[0] if len(lines) > 1 else {}
        return {key: round((count - first.get(key, 0)) / span_s, 2) for key, count in lines[-1].items()}


@asynccontextmanager
async def _process(*arguments: str, **environment: str) -> AsyncIterator[asyncio.StreamReader]:
    """Standard output of a Python process that lasts as long as the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env={**os.environ, **environment}, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@asynccontextmanager
async def flooding(
    kind: str, endpoint: str, tokens: Mapping[str, str], sent_per_s: float | None = None
) -> AsyncIterator[RunningFlood]:
    """A flood until the block is left."""
    bound = () if sent_per_s is None else (str(sent_per_s),)
    arguments = ("-m", "tools.bench.floods", kind, endpoint, *bound)
    async with _process(*arguments, FLOOD_TOKENS=json.dumps(dict(tokens))) as told:
        flood = RunningFlood(told)
        reading = asyncio.create_task(flood.read())
        try:
            yield flood
        finally:
            reading.cancel()


@dataclass(frozen=True)
class Control:
    """Times of the quiet tenant while a flood pours over a stand-in."""

    times: list[float]
    outcomes: Mapping[str, float]


async def control(
    service: FloodedService, kind: str, tokens: Mapping[str, str], per_s: Mapping[str, float], for_s: float
) -> Control:
    """Have the flood pour over a stand-in, as it poured over the service, and measure the service."""
    async with _process("-m", "tools.bench.stand_ins", kind, json.dumps(dict(per_s))) as told:
        async with asyncio.timeout(START_S):
            port = int(await told.readline())
        async with flooding(kind, f"127.0.0.1:{port}", tokens, per_s.get(SENT)) as flood:
            await flood.settled()
            times, _ = await service.measure(for_s)
            return Control(times, flood.per_s())


async def compare(
    service: FloodedService, kind: str, tokens: Mapping[str, str], for_s: float, *, is_controlled: bool = True
) -> Flooded:
    """The quiet tenant before, while and after a flood, and in its control."""
    started = await service.held()
    calm, _ = await service.measure(CALM_S / 2)
    before = await service.held()
    async with flooding(kind, service.endpoint, tokens) as flood:
        await flood.settled()
        settled = await service.held()
        began_s = time.perf_counter()
        times, refused = await service.measure(for_s)
        took_s = time.perf_counter() - began_s
        held = await service.held()
        outcomes = flood.per_s()
    await asyncio.sleep(SETTLE_S)
    alone = await control(service, kind, tokens, outcomes, for_s) if is_controlled else None
    await asyncio.sleep(SETTLE_S / 2)
    after, _ = await service.measure(CALM_S / 2)
    calm += after
    name, _, flood_name = kind.partition("/")
    return Flooded(
        service=name,
        flood=flood_name,
        calm_ms=p99_ms(calm),
        while_ms=p99_ms(times),
        calm_p50_ms=p50_ms(calm),
        while_p50_ms=p50_ms(times),
        answered=len(times),
        refused=refused,
        held=held,
        before=before,
        outcomes=outcomes,
        control_ms=p99_ms(alone.times) if alone else None,
        control_p50_ms=p50_ms(alone.times) if alone else None,
        control_outcomes=alone.outcomes if alone else None,
        calm_cpu_ms_per_s=round((before["cpu_ms"] - started["cpu_ms"]) / (CALM_S / 2)),
        while_cpu_ms_per_s=round((held["cpu_ms"] - settled["cpu_ms"]) / took_s),
    )


def table(found: list[Flooded]) -> str:
    """All figures, as Markdown."""
    lines = [
        "| service | flood | p50 calm, control, flood (ms) | p99 calm, control, flood (ms) | of calm | of control"
        " | ≤ 1.2 | processor time (ms/s) | answered, not | memory | descriptors | disk | faults"
        " | calls/s: of the flood; of its control |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        growth = [f"{each.before[key]} → {each.held[key]}" for key in ("rss_mib", "descriptors", "disk_kib")]
        faults = each.held["internal"] - each.before["internal"]
        lines.append(
            f"| {each.service} | {each.flood} "
            f"| {each.calm_p50_ms:g}, {_figure(each.control_p50_ms)}, {each.while_p50_ms:g} "
            f"| {each.calm_ms:g}, {_figure(each.control_ms)}, {each.while_ms:g} "
            f"| {each.ratio:.2f} | {each.added_ratio:.2f} | {'yes' if each.is_met else 'NO'} "
            f"| {each.calm_cpu_ms_per_s:g} → {each.while_cpu_ms_per_s:g} "
            f"| {each.answered}, {each.refused} | {growth[0]} MiB | {growth[1]} | {growth[2]} KiB | {faults} "
            f"| {_rates(each.outcomes)}; {_rates(each.control_outcomes or {})} |"
        )
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _rates(outcomes: Mapping[str, float]) -> str:
    return ", ".join(f"{rate:.0f} {outcome}" for outcome, rate in outcomes.items()) or "–"


async def run(only: list[str], for_s: float, *, is_controlled: bool = True) -> list[Flooded]:
    """Every flood whose name has one of these words, one after the other."""
    kinds = [f"{service}/{flood}" for service, floods in FLOODS.items() for flood in floods]
    chosen = [kind for kind in kinds if not only or any(word in kind for word in only)]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        names = {kind.partition("/")[0] for kind in chosen}
        async with flooded_services(Path(folder), names) as (services, roster):
            for kind in chosen:
                service = services[kind.partition("/")[0]]
                each = await compare(service, kind, roster.tokens, for_s, is_controlled=is_controlled)
                found.append(each)
                figures = f"calm {each.calm_ms:g}, control {_figure(each.control_ms)}, flood {each.while_ms:g} ms"
                print(f"{kind}: {figures}", file=sys.stderr, flush=True)
    return found


def as_document(each: Flooded) -> dict[str, Any]:
    """One flood's figures for JSON."""
    return {**vars(each), "ratio": each.ratio, "added_ratio": each.added_ratio, "is_met": each.is_met}


def main() -> int:
    """Print the table, or with --json the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="floods whose names have one of these")
    parser.add_argument("--for-s", type=float, default=5.0, help="seconds of measuring while one flood lasts")
    parser.add_argument("--without-controls", action="store_true", help="shorter: floods against calm alone")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = asyncio.run(run(arguments.only, arguments.for_s, is_controlled=not arguments.without_controls))
    print(json.dumps([as_document(each) for each in found], indent=2) if arguments.json else table(found))
    return 0 if all(each.is_met for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
