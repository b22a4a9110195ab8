"""Decides how thorough each pass of collection is: most ask about what changed, some look at everything.

A look at everything takes as long as there are blobs and versions, and finds what no removed version left: blobs of
publications that were broken off, of older copies of the catalog, and rows that changed by themselves. Half of the
grace lies between two of them, so each blob that goes was also found unreferenced by one, row by row.
"""

from collections.abc import Callable
from dataclasses import dataclass

FULL_SHARE = 0.5
"""Part of the grace after which everything is looked at again."""


@dataclass(frozen=True, slots=True)
class CollectionRound:
    """One pass."""

    elapsed_s: float
    """Time since the last pass that counts as seen by both."""
    is_full: bool
    """It looks at everything."""
    since_s: float
    """Time, by the catalog's clock, from which on it asks for removed versions."""


class Rounds:
    """The passes of one store. Pure state, with the clock passed in."""

    def __init__(self, grace_s: float, max_elapsed_s: float, clock: Callable[[], float]) -> None:
        self._grace_s = grace_s
        self._max_elapsed_s = max_elapsed_s
        self._clock = clock
        self._last_s: float | None = None
        """Time of the last pass that saw what it looked for to its end; None where the last one did not."""
        self._last_full_s = 0.0
        self._since_s = 0.0

    def next(self, *, full: bool = False) -> CollectionRound:
        """The pass that would begin now; the first one, and one after a pass that did not end, look at everything."""
        now_s = self._clock()
        if self._last_s is None:
            return CollectionRound(0.0, True, 0.0)
        is_full = full or now_s - self._last_full_s >= self._grace_s * FULL_SHARE
        return CollectionRound(min(now_s - self._last_s, self._max_elapsed_s), is_full, self._since_s)

    def begin(self, *, full: bool = False) -> tuple[CollectionRound, float]:
        """Begin a pass, with the time that `end` wants."""
        found, now_s = self.next(full=full), self._clock()
        self._last_s = None
        return found, now_s

    def end(self, ended: CollectionRound, began_s: float, until_s: float) -> None:
        """A pass saw everything that it looked for, of removed versions those until a time of the catalog's clock."""
        self._last_s, self._since_s = began_s, until_s
        if ended.is_full:
            self._last_full_s = began_s

    def forget(self) -> None:
        """Another process did the passes in between."""
        self._last_s = None
