"""Places for streams are shared between tenants, and what sleeps gives way."""

import asyncio
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.errors import QuotaExceededError, StreamStalledError
from shared.server.stream_places import MAX_LEFT_BEHIND, SHARE, SLEEPS_S, Stream, StreamLimit, StreamPlaces


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
        await asyncio.wait_for(writing, 5)
    stream.end()
