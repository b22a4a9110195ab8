"""Stand-ins of flooded services end what they hold as the services did, whatever pours over them."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping

import pytest

from tests.support.waiting import until
from tools.bench.floods import FLOODS
from tools.bench.isolation import Flooded, table
from tools.bench.stand_ins import MOST_AT_ONCE_S, Ends, stand_in

TOKENS = {"loud": "hs1_a_b", "inventor": "hs1_c_d"}
HELD = {"cpu_ms": 1, "rss_mib": 1, "descriptors": 1, "disk_kib": 1, "internal": 0}


@pytest.mark.parametrize(
    ("kind", "per_s"),
    [
        ("worker/64 long requests", {"RESOURCE_EXHAUSTED": 30.0, "OK": 10.0}),
        ("worker/5,000 cancels/s, anew at once", {"sent": 500.0, "closed": 20.0}),
        ("store/256 uploads that drip", {"RESOURCE_EXHAUSTED": 40.0}),
        ("gateway/64 clients without a pause", {"429": 30.0, "200": 10.0}),
        ("gateway/256 bodies that drip", {"closed": 40.0}),
    ],
)
async def test_a_flood_ends_as_it_ended_at_the_service(kind: str, per_s: Mapping[str, float]) -> None:
    service, _, name = kind.partition("/")
    outcomes: Counter[str] = Counter()
    ends = {outcome: rate for outcome, rate in per_s.items() if outcome != "sent"}
    total = sum(ends.values())
    async with stand_in(kind, per_s) as port:
        began_s = time.monotonic()
        flooding = asyncio.ensure_future(FLOODS[service][name](f"127.0.0.1:{port}", TOKENS, outcomes))
        await until(lambda: sum(outcomes[each] for each in ends) >= 20)
        took_s = time.monotonic() - began_s
        found = {outcome: outcomes[outcome] for outcome in ends}
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
    assert sum(found.values()) <= total * (took_s + MOST_AT_ONCE_S) + 1
    for outcome, rate in ends.items():
        assert found[outcome] == pytest.approx(sum(found.values()) * rate / total, abs=4)


async def test_what_was_held_first_ends_first() -> None:
    ends, order = Ends({"closed": 200.0}), []

    async def held(number: int) -> None:
        await ends.turn()
        order.append(number)

    waiting = [asyncio.create_task(held(number)) for number in range(8)]
    await asyncio.sleep(0)
    running = asyncio.create_task(ends.run())
    async with asyncio.timeout(60):
        await asyncio.gather(*waiting)
    running.cancel()
    assert order == list(range(8))


def flooded(calm_ms: float, control_ms: float | None, while_ms: float, refused: int = 0) -> Flooded:
    return Flooded(
        "worker", "a", calm_ms, while_ms, 1.0, 1.0, 10, refused, HELD, HELD, {"OK": 1.0}, control_ms, control_ms, {}
    )


@pytest.mark.parametrize(
    ("each", "is_met"),
    [
        (flooded(10.0, 40.0, 48.0), True),
        (flooded(10.0, 40.0, 49.0), False),
        (flooded(40.0, 10.0, 48.0), True),
        (flooded(10.0, None, 12.0), True),
        (flooded(10.0, None, 12.1), False),
        (flooded(10.0, 40.0, 10.0, refused=1), False),
    ],
)
def test_a_flood_is_read_against_its_control_and_both_quotients_stay(each: Flooded, is_met: bool) -> None:
    assert each.is_met is is_met
    row = table([each]).splitlines()[-1]
    assert f"| {each.ratio:.2f} | {each.added_ratio:.2f} | {'yes' if is_met else 'NO'} |" in row
