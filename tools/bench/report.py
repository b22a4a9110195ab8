"""BENCHMARKS.md from the results of a run. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from tools.bench import gpu_page
from tools.bench.figures import BenchFigures
from tools.bench.notes import NOTES
from tools.bench.tables import one_line
from tools.bench.targets import Line, lines

VERDICTS = {True: "met", False: "**missed**"}
BUSY = 0.05
"""Share of the machine that other work may take before the report says so."""


def render(results: Mapping[str, Any]) -> str:
    """The whole page."""
    figures = BenchFigures(results)
    found = lines(figures)
    sections = (_head(results), _targets(found), _missed(found, figures), _peers(figures), _open_load(figures))
    rest = (gpu_page.section(results.get("gpu")), _tables(results), _record(results, figures))
    return "\n".join(line for section in (*sections, *rest) for line in section) + "\n"


def _head(results: Mapping[str, Any]) -> Iterator[str]:
    machine = results["machine"]
    yield "# Benchmarks"
    yield ""
    yield (
        f"Written by `make bench` ({results['level']}) on {results['date']}, {machine['cores']} cores of "
        f"{machine['cpu']}. Every peer answers the same rows on the same threads, in turns, in one run; figures are "
        "medians. They hold for this kind of machine alone: compare ratios, and never with another machine's."
    )
    yield ""
    busy = max((part.get("busy_before", 0.0) for part in results["parts"].values()), default=0.0)
    if busy > BUSY:
        yield f"**Other work took up to {busy:.0%} of the machine meanwhile**, so spreads are wide."
        yield ""


def _targets(found: list[Line]) -> Iterator[str]:
    met = sum(line.is_met is True for line in found)
    judged = sum(line.is_met is not None for line in found)
    yield "## Targets"
    yield ""
    yield f"{met} of {judged} that were measured are met; {len(found) - judged} were not measured here."
    yield ""
    yield "| target | measured | peer, or without | limit | ratio | verdict |"
    yield "|---|---|---|---|---|---|"
    for line in found:
        ratio = "" if line.found is None or not line.is_ratio else f"{line.found:.3g}"
        verdict = line.why_not if line.is_met is None else VERDICTS[line.is_met]
        yield f"| {line.target} | {line.measured} | {line.peer} | {line.limit} | {ratio} | {verdict} |"
    yield ""
    yield "![how far each target is met](docs/bench-targets.svg)"
    yield ""


def _missed(found: list[Line], figures: BenchFigures) -> Iterator[str]:
    missed = [line for line in found if line.is_met is False]
    yield "## Missed, and why"
    yield ""
    if not missed:
        yield "None."
    for line in missed:
        note = NOTES.get(line.key, "No note yet.")
        margin = "" if line.margin is None else f" ({line.margin:.2f} of the target)"
        yield f"- **{line.target}**{margin}: {note}"
    yield ""
    yield "Where a step's time goes, in process, all cores: what memory needs at its measured speed, and the rest."
    yield ""
    yield "| step | whole | weights | adapters | keys and values | the rest |"
    yield "|---|---|---|---|---|---|"
    for rows, adapters, context in ((1, 0, 64), (8, 0, 64), (8, 8, 64), (8, 0, 512), (8, 0, 1900)):
        whole, weights = figures.step_ms(rows, adapters, context), figures.weights_bytes_ms()
        slots, keys = figures.adapters_bytes_ms(adapters), figures.context_bytes_ms(rows, context)
        if whole is None or weights is None or slots is None or keys is None:
            continue
        name = f"{rows} rows, {adapters} adapters, context {context}"
        rest = whole - weights - slots - keys
        yield f"| {name} | {whole:.1f} ms | {weights:.1f} | {slots:.1f} | {keys:.1f} | {rest:.1f} |"
    yield ""


def _peers(figures: BenchFigures) -> Iterator[str]:
    yield "## Peers side by side"
    yield ""
    yield "Tokens a second, the median with the lowest and the highest round; prompts: prompt tokens a second."
    for case in figures.cases:
        yield ""
        yield f"**{case['name']}**"
        yield ""
        yield "| peer | tok/s | lowest–highest | inter-token p50, p99 ms |"
        yield "|---|---|---|---|"
        for name, found in case["peers"].items():
            rate = found["tok_s"]
            gaps = f"{found['gap_p50_ms']:.1f}, {found['gap_p99_ms']:.1f}" if "gap_p50_ms" in found else ""
            yield f"| {name} | {rate['median']:.1f} | {rate['low']:.1f}–{rate['high']:.1f} | {gaps} |"
        for name, why in case["skipped"].items():
            yield f"| {name} | skipped | | {one_line(why)} |"
    yield ""


def _open_load(figures: BenchFigures) -> Iterator[str]:
    found = figures.table("load", "open")
    if not found:
        return
    yield "## Open load through gRPC"
    yield ""
    yield (
        f"Poisson arrivals for {found['adapters']} adapters by Zipf's law, {found['slots']} slots; the knee, where the "
        f"median first token takes three times an idle worker's, is at {found['knee_per_s']:g} requests a second."
    )
    yield ""
    yield "| requests/s | answered | refused | tok/s | TTFT p50, p99 ms | whole answer p50, p99 ms |"
    yield "|---|---|---|---|---|---|"
    for row in found["rates"]:
        first = f"{row['ttft_p50_ms']:.0f}, {row['ttft_p99_ms']:.0f}"
        whole = f"{row['total_p50_ms']:.0f}, {row['total_p99_ms']:.0f}"
        answered = row["requests"] - row["refused"]
        yield f"| {row['rate_per_s']:g} | {answered} | {row['refused']} | {row['tok_s']:.1f} | {first} | {whole} |"
    yield ""


def _tables(results: Mapping[str, Any]) -> Iterator[str]:
    yield "## All other figures"
    yield ""
    for name, part in results["parts"].items():
        if name != "side_by_side":
            yield f"| {name.replace('_', ' ')} ({part['date']}, {part['level']}) | |"
            yield "|---|---|"
            yield from (f"| {key} | {value} |" for key, value in flat(part["result"]) if " rates" not in f" {key}")
            yield ""


def _record(results: Mapping[str, Any], figures: BenchFigures) -> Iterator[str]:
    machine = results["machine"]
    yield "## The machine and the versions"
    yield ""
    yield "| | |"
    yield "|---|---|"
    for name, value in machine.items():
        yield f"| {name.replace('_', ' ')} | {' '.join(value) if isinstance(value, list) else value} |"
    for peer, versions in figures.table("side_by_side", "versions").items():
        yield f"| {peer} | {one_line(', '.join(f'{name} {version}' for name, version in versions.items()))} |"
    for name, part in results["parts"].items():
        yield f"| {name.replace('_', ' ')} | {part['took_s']:.0f} s, at {part['commit']} |"


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested results as rows."""
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in flat(inner, f"{prefix} {key}".strip().replace("_", " "))]
    return [(prefix, f"{value:.3g}" if isinstance(value, float) else one_line(str(value)))]
