"""Trace context of calls, by W3C: two headers, read strictly and within bounds; what is not valid is no context.

https://www.w3.org/TR/trace-context/. Metadata of gRPC and headers of HTTP have the same two keys.
"""

import re
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
MAX_PARENT_CHARS = 256
"""Longest `traceparent` that is looked at: later versions may be longer than the 55 characters of this one."""
MAX_STATE_CHARS = 512
MAX_STATE_MEMBERS = 32

_PARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-[!-~]*)?"
)
_KEY = r"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
_MEMBER = re.compile(rf"(?P<key>{_KEY})=(?P<value>[ -+\--<>-~]{{0,255}}[!-+\--<>-~])")
_SAMPLED, _RANDOM = 0x01, 0x02


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Place in a trace: the span that a call is made in."""

    trace_id: str
    """32 hexadecimal digits, as the next has 16."""
    span_id: str
    flags: int
    """1 if the caller records the trace, and 2 if its id is random."""
    state: tuple[tuple[str, str], ...] = ()
    """Members of `tracestate`, the newest first."""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers that carry it."""
        parent = (TRACEPARENT, f"00-{self.trace_id}-{self.span_id}-{self.flags & (_SAMPLED | _RANDOM):02x}")
        state = ",".join(f"{key}={value}" for key, value in self.state)
        return (parent, (TRACESTATE, state)) if state else (parent,)


CALLERS_TRACE: ContextVar[TraceContext | None] = ContextVar("hotslot_callers_trace", default=None)
"""Trace context that the call which is being handled came with; calls that it makes carry it on."""


def trace_context_of(headers: Iterable[tuple[str, str | bytes]]) -> TraceContext | None:
    """Trace context among the headers of a call; None where there is none, or not one that is valid."""
    parents: list[str] = []
    states: list[str] = []
    for key, value in headers:
        if key in (TRACEPARENT, TRACESTATE) and isinstance(value, str):
            (parents if key == TRACEPARENT else states).append(value)
    if len(parents) != 1 or len(parents[0]) > MAX_PARENT_CHARS:
        return None
    found = _PARENT.fullmatch(parents[0].strip(" \t"))
    if found is None or found["version"] == "ff" or (found["version"] == "00" and found["more"]):
        return None
    if not (found["trace"].strip("0") and found["span"].strip("0")):
        return None
    return TraceContext(found["trace"], found["span"], int(found["flags"], 16), _state_of(states))


def _state_of(values: list[str]) -> tuple[tuple[str, str], ...]:
    """Members of `tracestate`; none where one of them is wrong, or there are more than may be."""
    if sum(map(len, values)) + max(len(values) - 1, 0) > MAX_STATE_CHARS:
        return ()
    members = [member for value in values for each in value.split(",") if (member := each.strip(" \t"))]
    found = [_MEMBER.fullmatch(member) for member in members]
    state = {match["key"]: match["value"] for match in found if match is not None}
    return tuple(state.items()) if len(state) == len(members) <= MAX_STATE_MEMBERS else ()
