"""Bounds the processor time in which the expressions of one config are matched, whatever they and the base are.

One match in RE2 takes microseconds or, of an expression made for it, a millisecond. Some hundred expressions, each
tried on each of a hundred thousand modules, would keep a core busy for hours. Time is what is bounded, since it is what
is scarce: how much a match costs shows only when it is made.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from store_service.execution.unwanted import stop_if_unwanted

_LOOK_EVERY = 8
"""Matches between two looks at the clock."""
_matching = threading.local()


class MatchBudgetError(ValueError):
    """The expressions of a config took too long."""


class _Budget:
    def __init__(self, max_s: float) -> None:
        self.max_s = max_s
        self.until_s = time.thread_time() + max_s
        self.num_matches = 0


@contextmanager
def bounded_matching(max_s: float) -> Iterator[None]:
    """Let this thread match for so long; then `spend` raises MatchBudgetError."""
    _matching.budget = _Budget(max_s)
    try:
        yield
    finally:
        _matching.budget = None


def spend() -> None:
    """A match is about to be made; also ends work that is unwanted."""
    budget: _Budget | None = getattr(_matching, "budget", None)
    if budget is None:
        return
    budget.num_matches += 1
    if budget.num_matches % _LOOK_EVERY:
        return
    stop_if_unwanted()
    if time.thread_time() > budget.until_s:
        raise MatchBudgetError(
            f"its expressions took more than {budget.max_s:g} s of processor time for {budget.num_matches:,} matches; "
            "name the modules in a list, or use fewer and simpler expressions"
        )
