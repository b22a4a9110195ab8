"""Launches steps and collects them; one that fails is run again in halves, until who breaks it stands alone."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from hotslot.errors import StepFailedError
from worker_service.engine.messages import Computed, ModelRunner
from worker_service.engine.sequence import Sequence
from worker_service.engine.work import Work

log = structlog.get_logger(__name__)

MOST_FAILURES = 5
"""After so many runs in a row that failed, a step of nothing tells whether the model computes at all."""


class ModelLostError(Exception):
    """A model of which no later step can succeed, as its runner found, or a step of nothing that failed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Sequences that cannot be computed, and why: one alone, or all that were left when the model was lost."""

    work: list[Work]
    cause: Exception

    def report(self) -> StepFailedError:
        """Write the cause to the log; returns what their callers hear."""
        incident = secrets.token_hex(6)
        log.error("step_failed", incident=incident, sequences=len(self.work), exc_info=self.cause)
        error = StepFailedError(
            f"the request's step of the model failed; the worker's log has the details under incident {incident}"
        )
        error.__cause__ = self.cause
        return error


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step that was launched at `began_s`, or could not be."""

    work: list[Work]
    began_s: float
    error: Exception | None


@dataclass(frozen=True, slots=True)
class LandedStep:
    """A step whose results are known."""

    work: list[Work]
    began_s: float
    results: list[Computed]


class Attempts:
    """Runs of one model, in the order of their launches; the engine answers between any two.

    A run that failed has written keys and values of its own tokens only, in blocks that its sequences hold and no other
    finds, and computing these again writes the same. So of a step that fails, every sequence that does not break it
    goes on as if it had been computed without the one that does. That costs two more runs for each halving, so
    2 log2(n) of n sequences for one that breaks steps, and never more than 2 n.

    A step that was launched after one that fails was fed by it, and may have read what it left half-way: its results
    are thrown away, and its sequences go on from where they were.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._halves: list[list[Work]] = []
        self._launched: list[LaunchedStep] = []
        self._num_failures = 0
        """Runs since the last one that did not fail."""
        self.lost: ModelLostError | None = None
        """Set when the model computes nothing any more."""

    @property
    def is_divided(self) -> bool:
        """True while parts of a step that failed are still to be run."""
        return bool(self._halves)

    @property
    def num_launched(self) -> int:
        """Steps whose results are not known yet."""
        return len(self._launched)

    @property
    def has_failed(self) -> bool:
        """True if the last step could not be launched, so that none can be fed by it."""
        return bool(self._launched) and self._launched[-1].error is not None

    def next_half(self, is_alive: Callable[[Sequence], bool]) -> list[Work]:
        """Work to run before the next step, less the sequences that have ended since; empty when there is none.

        **Invariant**: until then nothing is scheduled, so that all of it stays as it was planned.
        """
        while self._halves:
            half = [item for item in self._halves.pop() if item.is_current and is_alive(item.sequence)]
            if half:
                return half
        return []

    def launch(self, work: list[Work], now_s: float) -> None:
        """Have this computed after all that was launched before; fails when it lands, if it does."""
        if self._launched:
            places = {id(item.sequence): place for place, item in enumerate(self._launched[-1].work)}
            segments = [item.segment(places[id(item.sequence)] if item.is_fed else None) for item in work]
        else:
            segments = [item.segment() for item in work]
        for item in work:
            item.launch(now_s)
        error: Exception | None = None
        try:
            self._runner.launch(segments)
        except Exception as exc:  # noqa: BLE001 (whatever it is, it ends only those who cause it)
            error = exc
        self._launched.append(LaunchedStep(work, now_s, error))

    def land(self) -> LandedStep | Failure | None:
        """Wait for the first step that was launched; None when it failed and its halves come next."""
        step = self._launched.pop(0)
        results, error = self._collected(step)
        if error is None:
            self._num_failures = 0
            return LandedStep(step.work, step.began_s, results)
        for later in self._launched:
            self._collected(later)
        # What failed is run again from where it was planned, or ends: only what came after it goes back.
        for later in reversed(self._launched):
            for item in later.work:
                item.undo()
        self._launched.clear()
        return self._failed(step.work, error)

    def _collected(self, step: LaunchedStep) -> tuple[list[Computed], Exception | None]:
        for item in step.work:
            item.land()
        if step.error is not None:
            return [], step.error
        try:
            return self._runner.collect(), None
        except Exception as exc:  # noqa: BLE001 (as in `launch`)
            return [], exc

    def _failed(self, work: list[Work], cause: Exception) -> Failure | None:
        self._num_failures += 1
        if isinstance(cause, ModelLostError):
            self.lost = cause
        elif self._num_failures >= MOST_FAILURES:
            self._num_failures = 0
            self.lost = self._loss()
        if self.lost is not None:
            left = [item for half in reversed(self._halves) for item in half]
            self._halves.clear()
            return Failure([*work, *left], cause)
        if len(work) == 1:
            return Failure(work, cause)
        log.warning("step_halved", sequences=len(work), why=repr(cause))
        middle = len(work) // 2
        self._halves += [work[middle:], work[:middle]]
        return None

    def _loss(self) -> ModelLostError | None:
        """Loss of the model that a step of nothing shows; None where it computes."""
        try:
            self._runner.launch([])
            self._runner.collect()
        except Exception as exc:  # noqa: BLE001 (handed on)
            loss = ModelLostError("steps fail, and so does one of nothing")
            loss.__cause__ = exc
            return loss
        return None
