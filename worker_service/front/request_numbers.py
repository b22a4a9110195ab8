"""Numbers of the requests that a worker answered itself: by adapter, and OpenTelemetry's histograms of generations."""

from collections.abc import Callable, Iterator

from shared.call_notes import BASE_ALONE, FIRST_TOKEN, TOTAL, CallNotes
from shared.metrics.numbers import MAX_ADAPTERS, MAX_MODELS, BoundedLabels, Labels, Measured, Spreads, Tally
from shared.server.call_log import CallRecord

GENERATING = frozenset(f"/hotslot.worker.v1.InferenceService/{name}" for name in ("Generate", "Complete"))
PROVIDER = "hotslot"
UNKNOWN_OPERATION = "text_completion"
NO_ADAPTER = "__unknown__"
"""In the place of a name where a request failed before its adapters were known to exist."""


class RequestNumbers:
    """Observer of the worker's calls."""

    def __init__(self, base_model: Callable[[], str], *, by_tenant: bool, slow_s: float) -> None:
        """`base_model` names what serves requests without adapters; it is asked when a call has ended."""
        self._base_model = base_model
        self._by_tenant = by_tenant
        self._slow_s = slow_s
        self._requests = Tally("hotslot_requests_total")
        self._slow = Tally("hotslot_slow_requests_total")
        self._durations = Spreads("gen_ai_server_request_duration_seconds")
        self._first_tokens = Spreads("gen_ai_server_time_to_first_token_seconds")
        self._next_tokens = Spreads("gen_ai_server_time_per_output_token_seconds")
        self._adapters = BoundedLabels(MAX_ADAPTERS)
        self._models = BoundedLabels(MAX_MODELS)

    def __call__(self, record: CallRecord) -> None:
        """Count a call that has ended."""
        notes = record.notes
        if record.method not in GENERATING or notes.forwarded_to:
            return
        tenant = record.tenant if self._by_tenant else ""
        self._requests.add(*self._adapters(notes.adapter or NO_ADAPTER, tenant), record.code.name)
        if self._slow_s and record.duration_s >= self._slow_s:
            self._slow.add()
        labels = (notes.operation or UNKNOWN_OPERATION, PROVIDER, *self._models(*self._model_of(notes)))
        self._durations.add(record.duration_s, *labels, record.reason)
        first_s, total_s = notes.stages_s.get(FIRST_TOKEN), notes.stages_s.get(TOTAL)
        if first_s is not None and total_s is not None:
            self._first_tokens.add(first_s, *labels)
            if notes.first_answer_tokens > 1:
                self._next_tokens.add((total_s - first_s) / (notes.first_answer_tokens - 1), *labels)

    def readings(self) -> Iterator[Measured]:
        """Values now."""
        for numbers in (self._requests, self._slow, self._durations, self._first_tokens, self._next_tokens):
            yield from numbers.readings()

    def _model_of(self, notes: CallNotes) -> Labels:
        """Model as it was asked for, and as it answered."""
        if notes.adapter in ("", BASE_ALONE):
            base = self._base_model()
            return (base, base if notes.adapter else "")
        names = "+".join(notes.references)
        pairs = zip(notes.references, notes.digests, strict=True)
        return (names, "+".join(f"{reference.partition('@')[0]}@{digest}" for reference, digest in pairs))
