"""Listener of the engine, for metrics: one call for each thing that happened, on the engine's thread.

A listener must return at once; what it hears is plain data.
"""

from dataclasses import dataclass
from typing import Protocol

from hotslot.contract.generation import FinishReason
from hotslot.ids import Digest, TenantId
from worker_service.engine.messages import SequenceId
from worker_service.engine.prefix_keys import Mix


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step of the model."""

    duration_s: float
    gap_s: float | None
    """Since the end of the step before; None when there was nothing to compute in between."""
    num_rows: int
    num_tokens: int
    num_prompt_tokens: int
    """Tokens of prompts among them (or computed again after a preemption)."""


@dataclass(frozen=True, slots=True)
class SequenceReport:
    """A sequence that has ended. Durations are None when it did not come so far."""

    sequence_id: SequenceId
    tenant: TenantId
    mix: Mix
    outcome: FinishReason | str
    """Reason for its end: a finish reason, `cancelled`, or the name of the error's class."""
    queue_s: float | None
    """From arrival to its row."""
    slots_s: float | None
    """From its row until all of its adapters were copied."""
    time_to_first_token_s: float | None
    time_per_token_s: float | None
    """Mean over all tokens but the first."""
    prompt_tokens: int
    cached_tokens: int
    answer_tokens: int
    num_preemptions: int
    ended_s: float
    """On the engine's clock."""


@dataclass(frozen=True, slots=True)
class ActivationReport:
    """An adapter that was brought into slots."""

    digest: Digest
    num_slots: int
    size_bytes: int
    ahead: bool
    """Brought before a sequence that wants it had a row."""
    wait_s: float
    """From the reservation of its slots to its last byte, less the copying."""
    copy_s: float
    ready_s: float
    """Time of its last byte, on the engine's clock."""


class EngineListener(Protocol):
    """Hears what the engine did."""

    def stepped(self, report: StepReport) -> None:
        """A step was computed."""
        ...

    def ended(self, report: SequenceReport) -> None:
        """A sequence has ended."""
        ...

    def activated(self, report: ActivationReport) -> None:
        """An adapter is in slots."""
        ...

    def evicted(self, digest: Digest) -> None:
        """An adapter's slots went to another."""
        ...


class SilentListener:
    """Hears nothing."""

    def stepped(self, report: StepReport) -> None: ...
    def ended(self, report: SequenceReport) -> None: ...
    def activated(self, report: ActivationReport) -> None: ...
    def evicted(self, digest: Digest) -> None: ...
