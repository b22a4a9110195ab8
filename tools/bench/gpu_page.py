"""The GPU section of BENCHMARKS.md from the results of a GPU report. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from tools.bench.tables import one_line

HEADING = "## GPU"
UNMEASURED = "Unmeasured: no run of `make gpu-report` has been committed."


def section(found: Mapping[str, Any] | None) -> Iterator[str]:
    """Lines of the section; `found` are committed results, None where there are none."""
    yield HEADING
    yield ""
    if found is None:
        yield UNMEASURED
        yield ""
        return
    machine, parts = found["machine"], found["parts"]
    yield (
        f"Written by `make gpu-report` on {found['date']}: {machine['device']}, torch {machine['torch']}, "
        f"{found['model']}, {found['took_s']:.0f} s; a copy on the device reads and writes "
        f"{machine['copy_gb_s']:,.0f} GB/s."
    )
    yield ""
    for name, part in parts.items():
        yield from _part(name.replace("_", " "), part)


def _part(name: str, part: Mapping[str, Any]) -> Iterator[str]:
    if "why" in part:
        yield f"**{name}**: not measured, {one_line(part['why'])}"
        yield ""
        return
    result = part["result"]
    yield f"**{name}** ({part['took_s']:.0f} s)"
    yield ""
    rows = result if isinstance(result, list) else [{"": key, "found": value} for key, value in result.items()]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    yield f"| {' | '.join(column.replace('_', ' ') for column in columns)} |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield f"| {' | '.join(_cell(row.get(column, '')) for column in columns)} |"
    yield ""


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return one_line("; ".join(f"{key}: {_cell(inner)}" for key, inner in value.items()) or "none")
    if isinstance(value, list):
        return one_line("; ".join(map(_cell, value)) or "none")
    return one_line(str(value).replace("_", " "))


def with_section(page: str, found: Mapping[str, Any] | None) -> str:
    """The page with its GPU section replaced, or added at its end."""
    before, _, rest = page.partition(f"{HEADING}\n")
    _, next_heading, after = rest.partition("\n## ")
    written = "\n".join(section(found))
    return f"{before.rstrip()}\n\n{written.rstrip()}\n" + (f"\n## {after}" if next_heading else "")
