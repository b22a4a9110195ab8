"""Counts of captured steps, as the engine reports them."""

from dataclasses import dataclass
from enum import StrEnum


class UncapturedReason(StrEnum):
    """Reason for which steps run without a graph."""

    NEEDS_HOST = "needs_host"
    """Penalties, biases and log-probabilities are computed with values on the host."""
    TOO_LARGE = "too_large"
    """Steps of many tokens compute for longer than the host needs to launch them."""
    NOT_CAPTURABLE = "not_capturable"
    """The audit found what no graph can keep."""
    CAPTURE_FAILED = "capture_failed"
    """The device refused to capture."""
    DIFFERS = "differs"
    """The graph answered otherwise than the step that it was captured from."""
    TURNED_OFF = "turned_off"
    """Nothing was captured at the start."""


@dataclass(frozen=True, slots=True)
class UncapturedKinds:
    """Kinds of steps without a graph for one reason, and the steps that ran so."""

    reason: UncapturedReason
    why: str
    num_kinds: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class GraphCounts:
    """Kinds of steps that were captured at the start, and the steps since; nothing where steps are not captured."""

    num_captured: int = 0
    num_replayed: int = 0
    """Steps that a captured graph computed."""
    uncaptured: tuple[UncapturedKinds, ...] = ()


NO_GRAPHS = GraphCounts()
"""Counts of a model whose steps are not captured."""
