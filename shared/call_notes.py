"""Notes on the call that runs, which its handler takes and its log line and the metrics tell; never its prompt."""

import secrets
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from hotslot.trace_context import trace_context_of
from shared.audit.watched_call import REQUEST_ID_KEY, ids_of

FIRST_TOKEN, TOTAL = "first_token", "total"
BASE_ALONE = "__base__"
"""In the place of an adapter's name where a request had none, as PEFT has it; no adapter is called so."""
MIX = "__mix__"
"""In the place of a name where a request had several adapters."""


@dataclass(slots=True)
class CallNotes:
    """Facts about one call, as far as they are known."""

    request_id: str = ""
    trace_id: str = ""
    operation: str = ""
    """Name of a generation in OpenTelemetry's words: chat or text_completion; empty for other calls."""
    adapter: str = ""
    """Name of the adapter that serves, `__base__` or `__mix__`; empty until that is known."""
    references: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    """Versions that the call was about, in the order of the references where it had some."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    first_answer_tokens: int = 0
    """Tokens of the choice that ended first, whose times the stages have."""
    forwarded_to: str = ""
    """Worker that answered in this one's place."""
    stages_s: dict[str, float] = field(default_factory=dict)
    """Durations of the stages of a generation: resolve, load, queue, first_token and total, each since its arrival."""

    @property
    def ids(self) -> dict[str, str]:
        """Ids that belong on every line that is logged for the call."""
        return {"request_id": self.request_id, **({"trace_id": self.trace_id} if self.trace_id else {})}


NOTES: ContextVar[CallNotes | None] = ContextVar("hotslot_call_notes", default=None)


def call_notes() -> CallNotes:
    """Notes on the call that runs; where none does, they are read by nothing."""
    notes = NOTES.get()
    if notes is None:
        notes = CallNotes()
        NOTES.set(notes)
    return notes


def begin_notes(metadata: Iterable[tuple[str, str | bytes]]) -> CallNotes:
    """Notes on a call that begins, with its trace, and the id that its caller gave it or a new one."""
    pairs = [(key, value) for key, value in metadata if isinstance(value, str)]
    given = ids_of(dict(pairs).get(REQUEST_ID_KEY), trace_context_of(pairs))
    notes = CallNotes(given["request_id"] or secrets.token_hex(8), given["trace_id"])
    NOTES.set(notes)
    return notes


def adapter_label(names: Sequence[str]) -> str:
    """Label of the adapters that serve a request."""
    if not names:
        return BASE_ALONE
    return names[0] if len(names) == 1 else MIX
