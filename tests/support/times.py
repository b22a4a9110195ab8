"""Comparison of two samples of times: whether one can be told from the other."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Two samples of seconds beside each other."""

    auc: float
    """Chance that a time of the first is longer than one of the second (Mann–Whitney's U by the number of pairs)."""
    medians_s: tuple[float, float]

    @property
    def difference(self) -> float:
        """Difference of the medians, by that of the second."""
        return (self.medians_s[0] - self.medians_s[1]) / self.medians_s[1]

    def __str__(self) -> str:
        first, second = (round(value * 1e6, 1) for value in self.medians_s)
        return f"AUC {self.auc:.4f}, medians {first} and {second} us ({self.difference:+.2%})"


def compared(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare two samples; ties count half."""
    ranked = sorted([(value, True) for value in first] + [(value, False) for value in second])
    below, index, wins = 0, 0, 0.0
    while index < len(ranked):
        end = index
        while end < len(ranked) and ranked[end][0] == ranked[index][0]:
            end += 1
        tied = ranked[index:end]
        firsts = sum(is_first for _, is_first in tied)
        seconds = len(tied) - firsts
        wins += firsts * (below + seconds / 2)
        below += seconds
        index = end
    return Comparison(wins / (len(first) * len(second)), (statistics.median(first), statistics.median(second)))
