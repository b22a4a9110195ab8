"""Attempts of calls as a client's metrics have them: those that gRPC repeats by itself, and bytes of either way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.errors import AdapterNotFoundError
from hotslot.rpc import channel as rpc_channel
from hotslot.rpc.attempts import MAX_ATTEMPTS, SENT_KEY, TOLD_KEY, previous_attempts, told_attempts
from hotslot.rpc.channel import ChannelOptions, open_channel
from shared.metrics.calls import ClientCalls
from shared.metrics.numbers import Spread
from tests.support.waiting import until
from tests.unit.shared.server.test_rpc_socket import NAME, SHAPES, echo

STARTED, DURATION = "grpc_client_attempt_started_total", "grpc_client_attempt_duration_seconds"
SENT = "grpc_client_attempt_sent_total_compressed_message_size_bytes"
RECEIVED = "grpc_client_attempt_rcvd_total_compressed_message_size_bytes"


def told(calls: ClientCalls, name: str) -> dict[tuple[str, ...], float]:
    """Values by labels without the target; of a histogram their sum."""
    return {
        (reading.labels[0], *reading.labels[2:]): reading.value.total
        if isinstance(reading.value, Spread)
        else reading.value
        for reading in calls.readings()
        if reading.name == name
    }


async def test_attempts_that_grpc_repeats_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_channel, "SAFE_TO_RETRY", {NAME: ("unary_unary",)})
    calls = ClientCalls()
    async with echo() as running, open_channel(running.endpoint, ChannelOptions(hearer=calls)) as channel:
        assert await running.call(channel, "unary_unary", "unavailable twice") == ["unavailable twice"]
        await until(lambda: bool(told(calls, DURATION)))
        assert running.servicer.calls == 3
    assert told(calls, STARTED) == {(f"{NAME}/unary_unary",): 3}
    assert told(calls, DURATION).keys() == {(f"{NAME}/unary_unary", "OK")}


async def test_a_failure_after_attempts_tells_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_channel, "SAFE_TO_RETRY", {NAME: ("unary_unary",)})
    calls = ClientCalls()
    async with echo() as running, open_channel(running.endpoint, ChannelOptions(hearer=calls)) as channel:
        act, texts = running.servicer.act, iter(["unavailable twice", "missing"])
        monkeypatch.setattr(running.servicer, "act", lambda text, context: act(next(texts), context))
        with pytest.raises(AdapterNotFoundError):
            await running.call(channel, "unary_unary", "any")
        await until(lambda: bool(told(calls, DURATION)))
    assert told(calls, STARTED) == {(f"{NAME}/unary_unary",): 2}


@pytest.mark.parametrize("shape", SHAPES)
async def test_bytes_are_counted_as_the_server_counts_them(shape: str) -> None:
    calls = ClientCalls()
    async with echo() as running, open_channel(running.endpoint, ChannelOptions(hearer=calls)) as channel:
        assert await running.call(channel, shape, "hello") == ["hello"]
        await until(lambda: bool(told(calls, SENT)))
    size_bytes = 2 + len("hello")
    assert told(calls, SENT) == told(calls, RECEIVED) == {(f"{NAME}/{shape}", "OK"): size_bytes}
    assert told(calls, STARTED) == {(f"{NAME}/{shape}",): 1}


@given(st.text(max_size=6) | st.binary(max_size=4) | st.integers(0, 99).map(str))
def test_a_number_of_attempts_is_small_or_none(value: str | bytes) -> None:
    number = previous_attempts([("other", "3"), (SENT_KEY, value)], SENT_KEY)
    assert 0 <= number < MAX_ATTEMPTS
    assert told_attempts([(SENT_KEY, value)]) == (((TOLD_KEY, str(number)),) if number else ())
    assert not number or str(value).lstrip("0").isdecimal()
