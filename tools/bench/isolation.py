"""`python -m tools.bench.isolation`: what one tenant's floods do to the time that another waits for its first answer.

A worker over the echo model, whose steps take 10 ms, a store and a gateway, each a process that knows its callers, on
loopback; each flood comes from a process of its own. Prints a table, and exits with 1 where a quiet tenant waits for
more than 1.2 times as long (p99), is refused, or anybody hears of a fault of ours. `tests/hostile` has the short forms.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bench.floods import FLOODS
from tools.bench.isolated_services import ROOT, FloodedService, flooded_services

MOST = 1.2
"""Bound of the quotient of the p99 while a flood lasts and without it."""
CALM_S, SETTLE_S = 4.0, 2.0


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
    outcomes: Mapping[str, int]

    @property
    def ratio(self) -> float:
        """p99 while the flood lasts by that without it."""
        return self.while_ms / self.calm_ms if self.calm_ms else float("inf")

    @property
    def is_met(self) -> bool:
        """True where the quiet tenant hardly notices."""
        faults = self.held["internal"] - self.before["internal"]
        return self.ratio <= MOST and not self.refused and not faults


def p99_ms(times: list[float]) -> float:
    """99th percentile, in milliseconds."""
    ordered = sorted(times)
    return round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] * 1e3, 2) if ordered else float("inf")


def p50_ms(times: list[float]) -> float:
    """Median, in milliseconds."""
    return round(sorted(times)[len(times) // 2] * 1e3, 2) if times else float("inf")


@contextmanager
def flooding(kind: str, endpoint: str, tokens: Mapping[str, str]) -> Iterator[dict[str, int]]:
    """A flood by another process until the block is left; then what became of its calls is known."""
    outcomes: dict[str, int] = {}
    command = [sys.executable, "-m", "tools.bench.floods", kind, endpoint]
    environment = {**os.environ, "FLOOD_TOKENS": json.dumps(dict(tokens))}
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield outcomes
    finally:
        process.kill()
        told, _ = process.communicate()
        outcomes |= json.loads(told.splitlines()[-1]) if told else {}


async def compare(service: FloodedService, kind: str, tokens: Mapping[str, str], for_s: float) -> Flooded:
    """The quiet tenant before, while and after a flood."""
    calm, _ = await service.measure(CALM_S / 2)
    before = await service.held()
    with flooding(kind, service.endpoint, tokens) as outcomes:
        # The flood's process has to start, and its first calls are what a pace lets through.
        await asyncio.sleep(2 * SETTLE_S)
        times, refused = await service.measure(for_s)
        held = await service.held()
    await asyncio.sleep(SETTLE_S)
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
    )


def table(found: list[Flooded]) -> str:
    """All figures, as Markdown."""
    lines = [
        "| service | flood | p50 calm → while | p99 calm → while | ratio | ≤ 1.2 | answered, not | memory | descriptors"
        " | disk | faults |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        growth = [f"{each.before[key]} → {each.held[key]}" for key in ("rss_mib", "descriptors", "disk_kib")]
        faults = each.held["internal"] - each.before["internal"]
        lines.append(
            f"| {each.service} | {each.flood} | {each.calm_p50_ms:g} → {each.while_p50_ms:g} ms "
            f"| {each.calm_ms:g} → {each.while_ms:g} ms | {each.ratio:.2f} | {'yes' if each.is_met else 'NO'} "
            f"| {each.answered}, {each.refused} | {growth[0]} MiB | {growth[1]} | {growth[2]} KiB | {faults} |"
        )
    return "\n".join(lines)


async def run(only: list[str], for_s: float) -> list[Flooded]:
    """Every flood whose name has one of these words, one after the other."""
    kinds = [f"{service}/{flood}" for service, floods in FLOODS.items() for flood in floods]
    chosen = [kind for kind in kinds if not only or any(word in kind for word in only)]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        names = {kind.partition("/")[0] for kind in chosen}
        async with flooded_services(Path(folder), names) as (services, roster):
            for kind in chosen:
                found.append(await compare(services[kind.partition("/")[0]], kind, roster.tokens, for_s))
                print(f"{kind}: {found[-1].calm_ms:g} → {found[-1].while_ms:g} ms", file=sys.stderr, flush=True)
    return found


def as_document(each: Flooded) -> dict[str, Any]:
    """One flood's figures for JSON."""
    return {**vars(each), "ratio": each.ratio, "is_met": each.is_met}


def main() -> int:
    """Print the table, or with --json the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="floods whose names have one of these")
    parser.add_argument("--for-s", type=float, default=5.0, help="seconds of measuring while one flood lasts")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = asyncio.run(run(arguments.only, arguments.for_s))
    print(json.dumps([as_document(each) for each in found], indent=2) if arguments.json else table(found))
    return 0 if all(each.is_met for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
