"""Figures from the times at which tokens came. Pure."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from tools.bench.peers.protocol import TimedAnswer

MIN_GAPS = 3


class TooFewTokensError(ValueError):
    """Rows that hardly decoded beside each other."""


@dataclass(frozen=True)
class RoundSpread:
    """Median of several rounds, with the lowest and the highest."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "RoundSpread":
        """Spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values), len(values))


def decode_rate(answer: TimedAnswer) -> float:
    """Tokens a second of all rows together while all of them decode."""
    began_s = max(times_s[0] for times_s in answer.times_s)
    ended_s = min(times_s[-1] for times_s in answer.times_s)
    num_tokens = sum(began_s < at_s <= ended_s for times_s in answer.times_s for at_s in times_s)
    if num_tokens < MIN_GAPS or ended_s <= began_s:
        raise TooFewTokensError(f"{num_tokens} tokens came while all rows were decoding: too few for a rate")
    return num_tokens / (ended_s - began_s)


def prompt_rate(answer: TimedAnswer, num_prompt_tokens: int) -> float:
    """Prompt tokens a second, until every row has its first token."""
    return num_prompt_tokens / max(times_s[0] for times_s in answer.times_s)


def gaps_s(answer: TimedAnswer) -> list[float]:
    """Times between the tokens of each row."""
    return [after - before for times_s in answer.times_s for before, after in itertools.pairwise(times_s)]


def step_s(answer: TimedAnswer) -> float:
    """Estimate of a step's seconds, from few tokens: nothing that happens once counts."""
    found = gaps_s(answer)
    return statistics.median(found) if found else max(times_s[0] for times_s in answer.times_s)


def decode_figures(answers: Sequence[TimedAnswer]) -> dict[str, object]:
    """Figures of a decode case, from its rounds."""
    gaps_ms = 1e3 * np.array([gap for answer in answers for gap in gaps_s(answer)])
    return {
        "tok_s": asdict(RoundSpread.of([decode_rate(answer) for answer in answers])),
        "gap_p50_ms": float(np.percentile(gaps_ms, 50)),
        "gap_p99_ms": float(np.percentile(gaps_ms, 99)),
    }


def prompt_figures(answers: Sequence[TimedAnswer], num_prompt_tokens: int) -> dict[str, object]:
    """Figures of a prompt case, from its rounds."""
    return {
        "tok_s": asdict(RoundSpread.of([prompt_rate(answer, num_prompt_tokens) for answer in answers])),
        "first_token_ms": asdict(RoundSpread.of([1e3 * max(t[0] for t in answer.times_s) for answer in answers])),
    }
