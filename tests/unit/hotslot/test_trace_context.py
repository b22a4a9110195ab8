"""Trace context of W3C: valid headers are read and written alike, whatever else a caller sends is no context."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from hotslot.trace_context import MAX_STATE_CHARS, MAX_STATE_MEMBERS, TraceContext, trace_context_of

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
HEX = "0123456789abcdef"
KEYS = st.sampled_from(["a", "rojo", "congo", "0a@b", "k-_*/9", "x@y", "z" * 60])
VALUES = st.text(st.sampled_from("aZ09!+-<>~:;@#"), min_size=1, max_size=20)


def ids(length: int) -> st.SearchStrategy[str]:
    return st.integers(1, 16**length - 1).map(lambda number: f"{number:0{length}x}")


CONTEXTS = st.builds(
    TraceContext,
    ids(32),
    ids(16),
    st.integers(0, 3),
    st.dictionaries(KEYS, VALUES, max_size=8).map(lambda members: tuple(members.items())),
)
PIECES = st.sampled_from(
    [
        TRACE,
        SPAN,
        "0" * 32,
        "0" * 16,
        "00",
        "01",
        "ff",
        "cc",
        "-",
        "--",
        "x",
        "",
        TRACE.upper(),
        " ",
        "é",
        "\x00",
        "A" * 300,
    ]
)
HOSTILE_PARENTS = st.one_of(
    st.text(max_size=80),
    st.text(HEX + "-", min_size=50, max_size=60),
    st.lists(PIECES, max_size=8).map("".join),
    st.lists(PIECES, min_size=4, max_size=5).map("-".join),
    st.tuples(st.integers(0, 55), st.text(max_size=3)).map(lambda at: PARENT[: at[0]] + at[1] + PARENT[at[0] + 1 :]),
)
HOSTILE_STATES = st.one_of(
    st.text(max_size=600),
    st.lists(
        st.sampled_from(["a=1", "b@c=2", "=", "a=", "A=1", "a=1,", " ", "\t", "a=b=c", "é=1", "x" * 300 + "=1"])
    ).map(",".join),
    st.integers(30, 40).map(lambda count: ",".join(f"k{number}=v" for number in range(count))),
)


@given(CONTEXTS)
def test_a_context_is_read_as_it_was_written(context: TraceContext) -> None:
    assert trace_context_of(context.metadata) == context


@given(HOSTILE_PARENTS, st.lists(HOSTILE_STATES, max_size=3))
@example(f"ff-{TRACE}-{SPAN}-01", [])
@example(f"00-{'0' * 32}-{SPAN}-01", [])
@example(f"00-{TRACE}-{'0' * 16}-01", [])
@example(f"{PARENT}-what", [])
@example(f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", [])
@example(f"cc-{TRACE}-{SPAN}-01.what", [])
@example(PARENT.upper(), [])
@example(PARENT, ["a=1,a=2"])
@example(PARENT, [f"a={'x' * MAX_STATE_CHARS}"])
def test_what_is_taken_is_what_opentelemetry_takes_and_is_within_bounds(parent: str, states: list[str]) -> None:
    found = trace_context_of([("traceparent", parent), *(("tracestate", state) for state in states)])
    carrier = {"traceparent": [parent], "tracestate": states}
    theirs = trace.get_current_span(TraceContextTextMapPropagator().extract(carrier)).get_span_context()
    if found is None:
        return
    assert theirs.is_valid, f"{parent!r} is no context"
    assert (f"{theirs.trace_id:032x}", f"{theirs.span_id:016x}") == (found.trace_id, found.span_id)
    if found.state:
        assert dict(found.state) == dict(theirs.trace_state)
    written = dict(found.metadata)
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-3]", written["traceparent"])
    assert len(written.get("tracestate", "")) <= MAX_STATE_CHARS
    assert len(found.state) <= MAX_STATE_MEMBERS
    assert all(value.isascii() and value.isprintable() for value in written.values())
    assert trace_context_of(found.metadata) is not None


@pytest.mark.parametrize("parent", [PARENT, f" {PARENT}\t", f"01-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-later"])
def test_later_versions_and_white_space_are_taken(parent: str) -> None:
    found = trace_context_of([("traceparent", parent)])
    assert found == TraceContext(TRACE, SPAN, 1)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("traceparent", PARENT), ("traceparent", PARENT)],
        [("traceparent", PARENT.encode())],
        [("tracestate", "a=1")],
        [("traceparent", f"cc-{TRACE}-{SPAN}-01-{'x' * 300}")],
        [("traceparent", f"cc-{TRACE}-{SPAN}-01later")],
    ],
)
def test_no_header_two_of_them_and_bytes_are_no_context(headers: list[tuple[str, str | bytes]]) -> None:
    assert trace_context_of(headers) is None


def test_states_of_several_headers_are_one_and_wrong_ones_leave_the_parent() -> None:
    parent = ("traceparent", PARENT)
    found = trace_context_of([parent, ("tracestate", "rojo=1, congo=2"), ("tracestate", "x@y=3")])
    assert found is not None
    assert found.state == (("rojo", "1"), ("congo", "2"), ("x@y", "3"))
    assert dict(found.metadata)["tracestate"] == "rojo=1,congo=2,x@y=3"
    for wrong in ("rojo", "rojo=1,rojo=2", "ROJO=1", "a=" + "b" * 300, ",".join(f"k{n}=1" for n in range(33))):
        assert trace_context_of([parent, ("tracestate", wrong)]) == TraceContext(TRACE, SPAN, 1), wrong
