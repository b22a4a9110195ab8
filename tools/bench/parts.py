"""The parts of a benchmark: a program each, with its arguments at each level."""

from collections.abc import Mapping
from dataclasses import dataclass

from tools.bench.cases import Level

QUICKLY: tuple[str, ...] = ("--quick",)


@dataclass(frozen=True)
class Part:
    """One program that prints one JSON object."""

    name: str
    module: str
    arguments: Mapping[Level, tuple[str, ...]]
    """By level; a level that is not there does without this part."""
    within_s: float = 900.0


def _part(name: str, arguments: Mapping[Level, tuple[str, ...]], within_s: float = 900.0) -> Part:
    return Part(name, f"tools.bench.{name}", arguments, within_s)


EVERY = {level: ("--level", level.value) for level in Level}
ALWAYS: Mapping[Level, tuple[str, ...]] = dict.fromkeys(Level, ())
FROM_MAIN: Mapping[Level, tuple[str, ...]] = {Level.MAIN: QUICKLY, Level.FULL: ()}
PARTS = (
    _part("limits", ALWAYS),
    _part("side_by_side", EVERY, 4 * 3600.0),
    _part("hot_swap", {Level.QUICK: QUICKLY, Level.MAIN: (), Level.FULL: ()}),
    _part("idle_slots", {Level.QUICK: QUICKLY, Level.MAIN: QUICKLY, Level.FULL: ()}),
    _part("start", FROM_MAIN),
    _part("load", FROM_MAIN),
    _part("serving", FROM_MAIN),
    _part("publishing", FROM_MAIN),
    _part("placement", {Level.MAIN: (), Level.FULL: ()}),
    _part("store", {Level.MAIN: ("--quick", "--streams"), Level.FULL: ()}),
    _part("int8_accuracy", {Level.MAIN: (), Level.FULL: ()}),
    _part("forwarding", {Level.FULL: ()}),
)
