"""Workers that a publication made ready are called first, without a question to placement; others when they fail."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from hotslot.clients.failing_over import FailOver
from hotslot.clients.home import Home
from hotslot.clients.routing import READY_S, Picks, RouteKey
from hotslot.clients.worker import WorkerClient
from hotslot.contract.placement import WorkerPick
from hotslot.errors import NoWorkersError, RequestDeadlineError, UnavailableError
from hotslot.rpc.pool import Pool

KEY = RouteKey(("bot:train",), "")


@dataclass
class Called:
    """A worker that answers with its endpoint, unless it is away."""

    endpoint: str
    away: set[str]

    async def connect(self, timeout_s: float) -> None:
        if self.endpoint in self.away:
            raise UnavailableError(f"{self.endpoint} is away")

    async def close(self) -> None:
        pass


@dataclass
class Fleet:
    """Placement that names one worker, and a client's way to it."""

    away: set[str] = field(default_factory=set)
    now_s: float = 0.0
    num_asked: int = 0
    route: bool = True
    hangs: bool = False
    tick_s: float = 0.0
    """Time that passes with each look at the clock."""

    def __post_init__(self) -> None:
        self.picks = Picks(self._ask, self.clock)
        pool = cast("Pool[WorkerClient]", Pool(lambda endpoint: Called(endpoint, self.away)))
        fallback = None if self.hangs else "fallback"
        self.over = FailOver(Home("a test"), pool, self.picks, fallback, self.route, 1.0, 0.0)

    def clock(self) -> float:
        self.now_s += self.tick_s
        return self.now_s

    async def _ask(self, key: RouteKey) -> WorkerPick:
        self.num_asked += 1
        if self.hangs:
            raise RequestDeadlineError("placement did not answer in time")
        raise NoWorkersError("placement names none")

    async def served_by(self, key: RouteKey = KEY) -> str:
        async def answer(worker: WorkerClient, left_s: float) -> AsyncGenerator[str, None]:
            yield cast("Any", worker).endpoint

        async for endpoint in self.over.anywhere(key, 5.0, answer):
            return endpoint
        raise AssertionError("it ended without an answer")


async def test_ready_workers_take_turns_and_placement_is_not_asked() -> None:
    fleet = Fleet()
    fleet.picks.note_ready(KEY, ("a", "b"))
    assert sorted([await fleet.served_by() for _ in range(4)]) == ["a", "a", "b", "b"]
    assert fleet.num_asked == 0


async def test_a_ready_worker_that_is_away_gives_way_to_the_others() -> None:
    fleet = Fleet(away={"a"})
    fleet.picks.note_ready(KEY, ("a", "b"))
    assert {await fleet.served_by() for _ in range(3)} <= {"b", "fallback"}
    fleet.away.add("b")
    fleet.picks.note_ready(KEY, ("a", "b"))
    assert await fleet.served_by() == "fallback"
    assert fleet.num_asked


@pytest.mark.parametrize(
    "key", [RouteKey(("bot:train", "other"), ""), RouteKey(("bot",), ""), RouteKey(("bot:train",), "acme/tiny")]
)
async def test_what_was_not_published_is_placements_to_place(key: RouteKey) -> None:
    fleet = Fleet()
    fleet.picks.note_ready(KEY, ("a",))
    assert await fleet.served_by(key) == "fallback"
    assert fleet.num_asked == 1


async def test_placement_is_asked_again_once_it_knows() -> None:
    fleet = Fleet()
    fleet.picks.note_ready(KEY, ("a",))
    fleet.now_s += READY_S
    assert await fleet.served_by() == "fallback"
    assert fleet.num_asked == 1


async def test_a_client_that_does_not_route_calls_its_worker() -> None:
    fleet = Fleet(route=False)
    fleet.picks.note_ready(KEY, ("a",))
    assert await fleet.served_by() == "fallback"
    assert fleet.num_asked == 0


@pytest.mark.parametrize("looks", range(1, 12))
def test_a_note_that_expires_while_its_worker_fails_is_no_error(looks: int) -> None:
    fleet = Fleet()
    fleet.picks.note_ready(KEY, ("a",))
    fleet.now_s, fleet.tick_s = READY_S - looks * 0.001, 0.001
    fleet.picks.forget_endpoint("a")


async def test_what_ready_workers_said_is_told_where_placement_hangs() -> None:
    fleet = Fleet(away={"a"}, hangs=True)
    fleet.picks.note_ready(KEY, ("a",))
    with pytest.raises(UnavailableError, match="a is away"):
        await fleet.served_by()
    fleet.picks.forget_endpoint("a")
    with pytest.raises(UnavailableError, match="placement did not answer in time"):
        await fleet.served_by()
