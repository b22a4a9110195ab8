"""Calls over real sockets as spans: the client's, and the server's below it; hostile contexts are none."""

import random
from collections.abc import Iterator

import grpc
import pytest
from opentelemetry.trace import SpanKind, StatusCode

from hotslot.errors import AdapterNotFoundError, HotslotError
from hotslot.rpc.channel import ChannelOptions, open_channel
from hotslot.trace_context import CALLERS_TRACE, TraceContext, trace_context_of
from hotslot.tracing import span
from tests.support.recorded_spans import RecordedSpans, recording_spans
from tests.support.waiting import until
from tests.unit.shared.server.test_rpc_socket import NAME, SHAPES, echo

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = ("traceparent", f"00-{TRACE}-{SPAN}-01")


@pytest.fixture
def recorded() -> Iterator[RecordedSpans]:
    with recording_spans() as spans:
        yield spans


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_call_in_a_span_is_a_span_on_both_sides(recorded: RecordedSpans, shape: str) -> None:
    name = f"{NAME}/{shape}"
    async with echo() as running, open_channel(running.endpoint) as channel:
        with span("work"):
            assert await running.call(channel, shape, "hello") == ["hello"]
        await until(lambda: len(recorded.named(name)) == 2)
    (work,) = recorded.named("work")
    client, server = sorted(recorded.named(name), key=lambda each: each.kind is SpanKind.SERVER)
    assert (client.kind, server.kind) == (SpanKind.CLIENT, SpanKind.SERVER)
    assert client.parent is not None
    assert server.parent is not None
    assert work.context is not None
    assert client.context is not None
    assert (client.parent.span_id, server.parent.span_id) == (work.context.span_id, client.context.span_id)
    assert server.attributes is not None
    assert client.attributes is not None
    assert server.attributes["rpc.method"] == name
    assert client.attributes["rpc.response.status_code"] == server.attributes["rpc.response.status_code"] == "OK"
    assert client.attributes["server.port"] == running.server.port
    assert running.records[0].notes.trace_id == f"{work.context.trace_id:032x}"


async def test_a_callers_error_fails_its_span_and_not_the_servers(recorded: RecordedSpans) -> None:
    async with echo() as running, open_channel(running.endpoint) as channel:
        with span("work"), pytest.raises(AdapterNotFoundError):
            await running.call(channel, "unary_unary", "missing")
        with span("work"), pytest.raises(HotslotError):
            await running.call(channel, "unary_unary", "bug")
        await until(lambda: len(recorded.named(f"{NAME}/unary_unary")) == 4)
    found = {
        (each.kind, str((each.attributes or {})["rpc.response.status_code"])): each.status.status_code
        for each in recorded.named(f"{NAME}/unary_unary")
    }
    assert found == {
        (SpanKind.CLIENT, "NOT_FOUND"): StatusCode.ERROR,
        (SpanKind.SERVER, "NOT_FOUND"): StatusCode.UNSET,
        (SpanKind.CLIENT, "INTERNAL"): StatusCode.ERROR,
        (SpanKind.SERVER, "INTERNAL"): StatusCode.ERROR,
    }


async def test_what_a_process_does_by_itself_is_no_trace(recorded: RecordedSpans) -> None:
    async with echo() as running, open_channel(running.endpoint) as channel:
        await running.call(channel, "unary_unary", "hello")
    assert [each.kind for each in recorded.named(f"{NAME}/unary_unary")] == [SpanKind.SERVER]


async def test_without_a_recorder_a_callers_context_goes_on_as_it_came() -> None:
    seen: list[TraceContext | None] = []
    async with echo() as running, open_channel(running.endpoint) as channel:
        act = running.servicer.act

        async def look(text: str, context: grpc.aio.ServicerContext[object, object]) -> str:
            seen.append(CALLERS_TRACE.get())
            return await act(text, context)

        running.servicer.act = look  # type: ignore[method-assign]
        await running.call(channel, "unary_unary", "hello", metadata=(GIVEN, ("tracestate", "rojo=1")))
        token = CALLERS_TRACE.set(seen[0])
        await running.call(channel, "unary_unary", "hello")
        CALLERS_TRACE.reset(token)
    assert seen == [TraceContext(TRACE, SPAN, 1, (("rojo", "1"),))] * 2
    assert {record.notes.trace_id for record in running.records} == {TRACE}


async def test_hostile_contexts_neither_fail_a_call_nor_are_taken(recorded: RecordedSpans) -> None:
    """Values as gRPC lets them pass: printable ASCII, and the last of several of one key."""
    choice = random.Random(7)
    pieces = ["00", "ff", "01", TRACE, SPAN, "0" * 32, "0" * 16, "-", "--", "x", TRACE.upper(), "A" * 900, "=", ","]
    values = ["".join(choice.choices(pieces, k=choice.randint(0, 9))) for _ in range(150)]
    values += ["-".join(choice.choices(pieces, k=choice.randint(3, 5))) for _ in range(150)]
    options = ChannelOptions(max_attempts=1)
    async with echo() as running, open_channel(running.endpoint, options) as channel:
        for value in values:
            metadata = [("traceparent", value), ("tracestate", choice.choice(values))]
            assert await running.call(channel, "unary_unary", "hello", metadata=tuple(metadata)) == ["hello"]
            expected = trace_context_of(metadata)
            server, notes = recorded.named(f"{NAME}/unary_unary")[-1], running.records[-1].notes
            if expected is None:
                assert server.parent is None, value
                assert notes.trace_id != TRACE
            else:
                assert server.parent is not None
                assert f"{server.parent.span_id:016x}" == expected.span_id
                assert notes.trace_id == expected.trace_id
    assert len(running.records) == len(values)
