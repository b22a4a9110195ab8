"""Bounds the processor time in which the expressions of one config are matched, whatever they and the base are.

One match in RE2 takes microseconds or, of an expression made for it, a millisecond. Some hundred expressions, each
tried on each of a hundred thousand modules, would keep a core busy for hours. Time is what is bounded, since it is what
is scarce: how much a match costs shows only when it is made. A config that takes longer than real ones do rests as long
as it works, so that as many of them as are admitted at a time leave others half of the processor time.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from store_service.execution.unwanted import stop_if_unwanted

_LOOK_EVERY = 8
"""Matches between two looks at the clock."""
QUICK_S = 0.1
"""Processor time of matching in which nothing rests; configs of real adapters take milliseconds."""
_matching = threading.local()


class MatchBudgetError(ValueError):
    """The expressions of a config took too long."""


class MatchBudget:
    """Processor time of one config's matches, and what it rested."""

    def __init__(self, max_s: float) -> None:
        self.max_s = max_s
        self.looked_s = self.began_s = time.thread_time()
        self.num_matches = 0
        self.rested_s = 0.0


@contextmanager
def bounded_matching(max_s: float) -> Iterator[MatchBudget]:
    """Let this thread match for so long; then `spend` raises MatchBudgetError."""
    _matching.budget = MatchBudget(max_s)
    try:
        yield _matching.budget
    finally:
        _matching.budget = None


def spend() -> None:
    """A match is about to be made; also ends work that is unwanted."""
    budget: MatchBudget | None = getattr(_matching, "budget", None)
    if budget is None:
        return
    budget.num_matches += 1
    if budget.num_matches % _LOOK_EVERY:
        return
    stop_if_unwanted()
    now_s = time.thread_time()
    if now_s - budget.began_s > QUICK_S:
        rest_s = min(now_s - budget.looked_s, QUICK_S)
        budget.rested_s += rest_s
        time.sleep(rest_s)
    budget.looked_s = now_s
    if now_s - budget.began_s > budget.max_s:
        raise MatchBudgetError(
            f"its expressions took more than {budget.max_s:g} s of processor time for {budget.num_matches:,} matches; "
            "name the modules in a list, or use fewer and simpler expressions"
        )
