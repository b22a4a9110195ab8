"""End of a choice: its last event, and what the call's notes keep of it."""

from hotslot.contract.generation import Finished, Timings, Usage
from shared.call_notes import FIRST_TOKEN, TOTAL, CallNotes
from worker_service.front.answer import Answer
from worker_service.front.settling import SettledRequest


def note_finished(notes: CallNotes, finished: Finished) -> None:
    """Note what a choice took; of several choices the times are the first one's that ended."""
    usage, timings = finished.usage, finished.timings
    notes.answer_tokens += usage.completion_tokens
    notes.cached_tokens = usage.cached_tokens
    if FIRST_TOKEN not in notes.stages_s:
        notes.stages_s["load"] = timings.adapter_load_s
        notes.stages_s["queue"] = timings.queue_s
        notes.stages_s[FIRST_TOKEN] = timings.time_to_first_token_s
        notes.stages_s[TOTAL] = timings.total_s
        notes.first_answer_tokens = usage.completion_tokens


def finished_of(answer: Answer, settled: SettledRequest, num_prompt_tokens: int, load_s: float) -> Finished:
    """The last event of an answer that has ended."""
    ending, first = answer.ending, answer.first
    assert ending is not None
    assert first is not None
    return Finished(
        choice=answer.choice,
        reason=ending.reason,
        stop_string=ending.stop_string or "",
        stop_token_id=ending.stop_token_id,
        usage=Usage(num_prompt_tokens, answer.num_tokens, first.cached_tokens),
        timings=Timings(
            queue_s=first.started_s - settled.accepted_s,
            adapter_load_s=load_s,
            time_to_first_token_s=first.time_s - settled.accepted_s,
            total_s=answer.last_s - settled.accepted_s,
        ),
    )
