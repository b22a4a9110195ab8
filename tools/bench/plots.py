"""Plots of a run's results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from tools.bench.figures import BenchFigures
from tools.bench.targets import Line

OURS, OTHERS, MISSED = "#2a6f97", "#bbbbbb", "#bc4749"


def plot_targets(lines: Sequence[Line], path: Path) -> None:
    """Bars of how far each measured target is met; at 1 it is just met."""
    judged = [(line, line.margin) for line in lines if line.margin is not None]
    figure, axes = _figure(0.28 * len(judged) + 1)
    names = [line.target for line, _ in judged]
    axes.barh(names, [margin for _, margin in judged], color=[OURS if line.is_met else MISSED for line, _ in judged])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("of the target")
    _save(figure, axes, path)


def plot_peers(figures: BenchFigures, path: Path) -> None:
    """Bars of tokens a second of every peer in the cases of all cores at the short context."""
    bars: dict[str, float] = {}
    for case in figures.cases:
        if case["case"]["all_cores"] and case["case"]["context"] == 64 and case["case"]["kind"] == "decode":
            what = case["name"].partition(", context")[0]
            bars |= {f"{what}: {name}": found["tok_s"]["median"] for name, found in case["peers"].items()}
    figure, axes = _figure(0.22 * len(bars) + 1)
    axes.barh(list(bars), list(bars.values()), color=[OURS if ": hotslot" in name else OTHERS for name in bars])
    axes.set_xlabel("tokens a second")
    _save(figure, axes, path)


def _figure(height: float) -> tuple[Any, Any]:
    mpl.use("svg")
    # The same results make the same file.
    mpl.rcParams["svg.hashsalt"] = "hotslot"
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(9, height), layout="constrained")


def _save(figure: Any, axes: Any, path: Path) -> None:
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
