"""Times of steps: how long each took, and how long the model stood still before it."""

from worker_service.engine.attempts import LandedStep
from worker_service.engine.listener import EngineListener, StepReport
from worker_service.engine.pace import EnginePace


class StepTimes:
    """Measures steps as they land, for the pace that deadlines go by and for metrics."""

    def __init__(self, pace: EnginePace, listener: EngineListener) -> None:
        self._pace = pace
        self._listener = listener
        self._ended_s: float | None = None
        self.num_steps = 0
        self.longest_stall_s = 0.0

    def pause(self) -> None:
        """Nothing is computed until something comes: the time until then is no stall."""
        self._ended_s = None

    def landed(self, step: LandedStep, now_s: float) -> None:
        """Note a step, from its launch or from the end of the one before it, if that was later."""
        work, ended_s = step.work, self._ended_s
        num_tokens = sum(item.num_tokens for item in work)
        began_s = step.began_s if ended_s is None else max(step.began_s, ended_s)
        gap_s = began_s - ended_s if ended_s is not None else None
        self.num_steps += 1
        self._ended_s = now_s
        self.longest_stall_s = max(self.longest_stall_s, gap_s or 0.0)
        self._pace.stepped(now_s - began_s, num_tokens)
        num_prompt_tokens = sum(w.num_tokens for w in work if w.num_tokens > 1 or w.sequence.first_token_s is None)
        self._listener.stepped(StepReport(now_s - began_s, gap_s, len(work), num_tokens, num_prompt_tokens))
