"""Records of finished calls, and the line that the log has for each."""

from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
import structlog

from shared.call_notes import CallNotes

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One finished call."""

    method: str
    """`/package.Service/Method`."""
    tenant: str
    code: grpc.StatusCode
    reason: str
    """Reason of the error; empty when there was none."""
    duration_s: float
    notes: CallNotes = field(default_factory=CallNotes)


CallObserver = Callable[[CallRecord], None]
"""Told about every finished call, for example to count it; must not block or raise."""


def log_call(record: CallRecord) -> None:
    """The observer that every server has: one line a call, without anything of its prompt or answer."""
    notes = record.notes
    found = {
        "reason": record.reason,
        "digests": list(notes.digests),
        "prompt_tokens": notes.prompt_tokens,
        "answer_tokens": notes.answer_tokens,
        "forwarded_to": notes.forwarded_to,
        "request_id": notes.request_id,
        "trace_id": notes.trace_id,
    }
    log.info(
        "rpc",
        method=record.method,
        tenant=record.tenant,
        code=record.code.name,
        duration_ms=round(record.duration_s * 1e3, 3),
        **{name: value for name, value in found.items() if value},
    )


class SlowCalls:
    """Observer that logs calls which took long, with the time of each of their stages."""

    def __init__(self, slow_s: float) -> None:
        """0 logs none."""
        self._slow_s = slow_s

    def __call__(self, record: CallRecord) -> None:
        """Look at a call that ended."""
        if not self._slow_s or record.duration_s < self._slow_s or not record.notes.stages_s:
            return
        stages = {name: round(duration_s, 4) for name, duration_s in record.notes.stages_s.items()}
        log.warning(
            "slow_request",
            method=record.method,
            tenant=record.tenant,
            code=record.code.name,
            duration_s=round(record.duration_s, 4),
            adapters=list(record.notes.references),
            digests=list(record.notes.digests),
            prompt_tokens=record.notes.prompt_tokens,
            answer_tokens=record.notes.answer_tokens,
            **{f"{name}_s": duration_s for name, duration_s in stages.items()},
            why=f"HOTSLOT_SLOW_REQUEST_S is {self._slow_s:g}",
        )
