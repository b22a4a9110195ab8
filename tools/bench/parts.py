"""The parts of a benchmark: a program each, with its arguments at each level."""

from collections.abc import Mapping
from dataclasses import dataclass

from tools.bench.cases import RunLevel

QUICKLY: tuple[str, ...] = ("--quick",)


@dataclass(frozen=True)
class BenchPart:
    """One program that prints one JSON object."""

    name: str
    module: str
    arguments: Mapping[RunLevel, tuple[str, ...]]
    """By level; a level that is not there does without this part."""
    within_s: float = 900.0


def _part(name: str, arguments: Mapping[RunLevel, tuple[str, ...]], within_s: float = 900.0) -> BenchPart:
    return BenchPart(name, f"tools.bench.{name}", arguments, within_s)


EVERY = {level: ("--level", level.value) for level in RunLevel}
ALWAYS: Mapping[RunLevel, tuple[str, ...]] = dict.fromkeys(RunLevel, ())
FROM_MAIN: Mapping[RunLevel, tuple[str, ...]] = {RunLevel.MAIN: QUICKLY, RunLevel.FULL: ()}
PARTS = (
    _part("limits", ALWAYS),
    _part("side_by_side", EVERY, 4 * 3600.0),
    _part("hot_swap", {RunLevel.QUICK: QUICKLY, RunLevel.MAIN: (), RunLevel.FULL: ()}),
    _part("idle_slots", {RunLevel.QUICK: QUICKLY, RunLevel.MAIN: QUICKLY, RunLevel.FULL: ()}),
    _part("start", FROM_MAIN),
    _part("load", FROM_MAIN),
    _part("serving", FROM_MAIN),
    _part("publishing", FROM_MAIN),
    _part("placement", {RunLevel.MAIN: (), RunLevel.FULL: ()}),
    _part("store", {RunLevel.MAIN: ("--quick", "--streams"), RunLevel.FULL: ()}),
    _part("int8_accuracy", {RunLevel.MAIN: (), RunLevel.FULL: ()}),
    _part("gateway", {RunLevel.FULL: ()}),
    _part("forwarding", {RunLevel.FULL: ()}),
)
