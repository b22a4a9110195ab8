"""Places for streams are shared between tenants, and what sleeps gives way."""

import asyncio
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.errors import QuotaExceededError, StreamStalledError, UnavailableError
from shared.server.stream_places import (
    KEEPS_UP_BYTES_PER_S,
    MAX_LEFT_BEHIND,
    MAX_LEFT_BY_PARTY,
    SHARE,
    SLEEPS_S,
    Stream,
    StreamLimit,
    StreamPlaces,
)


def places(max_streams: int) -> StreamPlaces:
    return StreamPlaces(StreamLimit("max_read_streams", max_streams, ("/a.B/C",)))


def take(found: StreamPlaces, tenant: str, now_s: float = 0.0) -> Stream:
    stream = Stream(60)
    found.take(stream, tenant, now_s)
    return stream


def take_all(found: StreamPlaces, tenant: str) -> list[Stream]:
    taken: list[Stream] = []
    for _ in range(1_000):
        try:
            taken.append(take(found, tenant))
        except QuotaExceededError as refusal:
            assert refusal.subject == "max_read_streams"  # noqa: PT017 (the refusal is what ends the loop)
            return taken
    raise AssertionError("a tenant may have any number")


@pytest.mark.parametrize(("max_streams", "alone"), [(1, 1), (2, 2), (8, 8), (9, 8), (64, 57)])
def test_a_tenant_that_is_alone_has_eight_ninths(max_streams: int, alone: int) -> None:
    assert len(take_all(places(max_streams), "one")) == alone


def test_a_place_that_is_left_can_be_had_again() -> None:
    found = places(9)
    taken = take_all(found, "one")
    found.leave(taken[0])
    found.leave(taken[0])
    take(found, "one")
    with pytest.raises(QuotaExceededError):
        take(found, "one")


@given(st.integers(9, 100), st.lists(st.sampled_from("abc"), max_size=300))
def test_whoever_comes_finds_a_place_as_long_as_he_has_none(max_streams: int, arrivals: list[str]) -> None:
    found, held = places(max_streams), dict.fromkeys("abc", 0)
    for tenant in arrivals:
        num_free = max_streams - sum(held.values())
        try:
            take(found, tenant)
        except QuotaExceededError:
            assert held[tenant] >= SHARE * num_free
        else:
            held[tenant] += 1
    assert sum(held.values()) <= max_streams


def test_a_stream_that_comes_takes_the_place_of_the_one_that_sleeps_longest() -> None:
    found = places(9)
    taken = take_all(found, "one")
    taken[3].waits_since_s, taken[5].waits_since_s = 2.0, 1.0
    with pytest.raises(QuotaExceededError):
        take(found, "one", now_s=1.0 + SLEEPS_S - 0.1)
    taken.append(take(found, "one", now_s=1.0 + SLEEPS_S))
    with pytest.raises(QuotaExceededError):
        take(found, "one", now_s=1.5 + SLEEPS_S)
    taken[5].waits_since_s = None
    take(found, "one", now_s=2.0 + SLEEPS_S)


def test_a_tenant_leaves_only_so_many_sleepers_behind() -> None:
    found = places(4)
    with found.left_behind("one"):
        take(found, "one")
    with ExitStack() as stack:
        for _ in range(4 * MAX_LEFT_BEHIND):
            stack.enter_context(found.left_behind("one"))
        with pytest.raises(QuotaExceededError):
            take(found, "one")
        take(found, "other")
    take(found, "one")


async def test_a_write_that_is_not_taken_ends_with_a_typed_error() -> None:
    stream = Stream(0.05)
    await stream.write(asyncio.sleep(0))
    assert stream.waits_since_s is None
    with pytest.raises(StreamStalledError, match="took nothing for 0 s"):
        await stream.write(asyncio.sleep(60))
    with pytest.raises(StreamStalledError, match=r"nothing came on this stream for 0\.05 s"):
        await stream.read(asyncio.sleep(60))


async def test_a_stream_that_has_lost_its_place_ends_at_once() -> None:
    stream = Stream(60)
    writing = asyncio.create_task(stream.write(asyncio.sleep(60)))
    await asyncio.sleep(0)
    assert stream.waits_since_s is not None
    stream.end()
    with pytest.raises(StreamStalledError):
        await asyncio.wait_for(writing, 60)
    stream.end()


def take_for(found: StreamPlaces, tenant: str, party: str, now_s: float = 0.0) -> Stream:
    stream = Stream(60)
    found.take(stream, tenant, now_s, party)
    return stream


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 99), st.sampled_from("ab")), max_size=200))
def test_a_party_finds_a_place_as_long_as_it_has_fewer_than_another(
    max_streams: int, arrivals: list[tuple[int, str]]
) -> None:
    found = places(max_streams)
    streams: list[tuple[str, Stream]] = []
    for tenant, party in arrivals:
        live = [owner for owner, stream in streams if stream.ended_by is None]
        other = "b" if party == "a" else "a"
        is_short = live.count(party) + 1 <= live.count(other) - 1
        try:
            streams.append((party, take_for(found, f"{party}{tenant}", party)))
        except QuotaExceededError:
            assert not is_short
        live = [owner for owner, stream in streams if stream.ended_by is None]
        assert len(live) <= max_streams
        assert len(live) == len(found._owners)


def test_the_place_is_taken_from_the_stream_that_has_fallen_behind_most_else_from_the_latest() -> None:
    found = places(4)
    held = [take_for(found, f"t{index}", "loud") for index in range(4)]
    held[1].behind_s = 3.0
    take_for(found, "quiet", "quiet")
    assert [stream.ended_by is not None for stream in held] == [False, True, False, False]
    take_for(found, "quiet", "quiet")
    assert [stream.ended_by is not None for stream in held] == [False, True, False, True]
    with pytest.raises(QuotaExceededError):
        take_for(found, "quiet", "quiet")
    with pytest.raises(QuotaExceededError):
        take_for(found, "t9", "loud")


def test_a_party_leaves_only_so_many_sleepers_behind_under_whatever_tenants() -> None:
    found = places(2)
    with ExitStack() as stack:
        for index in range(2 * MAX_LEFT_BY_PARTY):
            stack.enter_context(found.left_behind(f"t{index}", "loud"))
        with pytest.raises(QuotaExceededError):
            take_for(found, "t99", "loud")
        take_for(found, "t99", "quiet")


async def test_a_caller_that_drips_falls_behind_and_one_that_is_merely_slow_does_not() -> None:
    found = places(4)
    drips, slow = take_for(found, "a", ""), take_for(found, "b", "")

    async def after(data: bytes) -> bytes:
        await asyncio.sleep(0.02)
        return data

    data = b"x" * 10 * KEEPS_UP_BYTES_PER_S  # which may take ten seconds
    for _ in range(10):
        await drips.read(after(b"x"))
        await slow.read(after(data))
        await slow.write(asyncio.sleep(0.02), data)
    assert drips.behind_s >= 0.19
    assert slow.behind_s == 0.0


async def test_a_stream_that_waits_for_nothing_is_ended_with_the_reason() -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    Stream(60, task).end(StreamStalledError("why"))
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_upload_that_is_waited_for_is_ended_with_the_reason() -> None:
    stream = Stream(60)
    reading = asyncio.create_task(stream.read(asyncio.sleep(60)))
    await asyncio.sleep(0)
    stream.end(UnavailableError("another one's"))
    with pytest.raises(UnavailableError, match="another one's"):
        await asyncio.wait_for(reading, 60)
