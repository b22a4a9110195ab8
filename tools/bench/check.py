"""Comparison of a run's ratios with the committed ones of the same kind of machine. Pure, but for reading them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tools.bench.targets import Line

COMMITTED = Path(__file__).with_name("committed")
"""Folder of ratios, a file for each kind of machine."""
TOLERANCE = 0.15
"""Share by which a ratio may be worse: rounds of one run differ by as much."""


def ratios(lines: Sequence[Line]) -> dict[str, float]:
    """Ratios of the lines that were measured, by key."""
    return {line.key: round(line.found, 4) for line in lines if line.found is not None and line.is_ratio}


def committed(machine_type: str) -> dict[str, float] | None:
    """The committed ratios of a kind of machine; None if there are none."""
    path = COMMITTED / f"{machine_type}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def commit(machine_type: str, found: Mapping[str, float]) -> Path:
    """Write the ratios to be committed."""
    path = COMMITTED / f"{machine_type}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(dict(sorted(found.items())), indent=2) + "\n", encoding="utf-8")
    return path


def worse(lines: Sequence[Line], before: Mapping[str, float], tolerance: float = TOLERANCE) -> Iterator[str]:
    """Sentences on the ratios that are worse than the committed ones by more than the tolerance."""
    for line in lines:
        if line.found is None or not line.is_ratio or line.key not in before:
            continue
        was = before[line.key]
        bound = was * (1 - tolerance) if line.at_least else was * (1 + tolerance)
        if line.found < bound if line.at_least else line.found > bound:
            yield f"{line.key}: found {line.found:.3g}, committed {was:.3g} ({line.target})"
