"""What is believed of a pool when Redis loses its memory: no more than was known, and no longer than leases run."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import example, given
from hypothesis import strategies as st

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.ids import Digest, WorkerId, digest_of
from shared.fleet.memory import PoolMemory
from shared.fleet.records import (
    PlacedVersion,
    PlacementsView,
    PoolView,
    ReportedLoad,
    Resident,
    WorkerInfo,
    WorkerRecord,
)

POOL = digest_of(b"base")
LEASE_S = 10.0


def record(
    number: int, *, until_s: float = LEASE_S, reports: int = 1, epoch: int = 1, endpoint: str = ""
) -> WorkerRecord:
    worker_id = WorkerId(f"w-{number}")
    info = WorkerInfo(worker_id, endpoint or f"h{number}:1", POOL, "m", "bfloat16", 16, 0.0, epoch)
    return WorkerRecord(info, WorkerState.READY, ReportedLoad(), until_s, reports)


def digest(number: int) -> Digest:
    return digest_of(b"adapter %d" % number)


def held(number: int, *workers: int) -> dict[Digest, tuple[PlacedVersion, ...]]:
    resident = Resident(digest(number), Tier.SLOT)
    return {digest(number): tuple(PlacedVersion(WorkerId(f"w-{n}"), resident) for n in workers)}


def numbers(found: PoolView | Sequence[PlacedVersion]) -> list[int]:
    ids = [r.info.worker_id for r in found.workers] if isinstance(found, PoolView) else [p.worker_id for p in found]
    return sorted(int(worker_id[2:]) for worker_id in ids)


def workers(memory: PoolMemory, now_s: float, since: str, *records: WorkerRecord) -> list[int]:
    return numbers(memory.workers(PoolView(records, now_s, since)))


def holders(memory: PoolMemory, now_s: float, since: str, number: int, *listed: int) -> list[int]:
    return numbers(memory.placements(PlacementsView(held(number, *listed), now_s, since))[digest(number)])


def knowing(*records: WorkerRecord) -> PoolMemory:
    """A reader that saw these at 1 s, each with version 7."""
    memory = PoolMemory()
    assert len(workers(memory, 1.0, "a", *records)) == len(records)
    found = [int(r.info.worker_id[2:]) for r in records]
    assert holders(memory, 1.0, "a", 7, *found) == found
    return memory


def test_while_redis_remembers_what_is_not_read_is_not_there() -> None:
    memory = knowing(record(1), record(2))
    assert workers(memory, 2.0, "a", record(2)) == [2]
    assert holders(memory, 2.0, "a", 7, 2) == [2]
    assert holders(memory, 2.0, "a", 7) == []


def test_what_was_known_before_a_loss_stays_until_the_leases_as_last_seen_end() -> None:
    for since in ("", "b"):
        memory = knowing(record(1, until_s=8.0), record(2, until_s=10.0))
        assert holders(memory, 2.0, since, 7) == [1, 2]
        assert workers(memory, 2.0, since) == [1, 2]
        assert workers(memory, 7.9, since) == holders(memory, 7.9, since, 7) == [1, 2]
        assert workers(memory, 8.0, since) == holders(memory, 8.0, since, 7) == [2]
        assert workers(memory, 10.0, since) == holders(memory, 10.0, since, 7) == []


def test_a_worker_that_died_with_redis_is_not_kept_by_others_that_come_back() -> None:
    memory = knowing(record(1), record(2))
    for now_s in (2.0, 5.0, 9.9):
        assert workers(memory, now_s, "b", record(1, until_s=now_s + LEASE_S)) == [1, 2]
    assert workers(memory, 10.0, "b", record(1, until_s=15.0)) == [1]
    assert holders(memory, 10.0, "b", 7, 1) == [1]


def test_a_worker_counts_as_it_says_itself_once_it_has_told_its_residency_again() -> None:
    memory = knowing(record(1), record(2))
    assert workers(memory, 2.0, "b", record(1, until_s=12.0, reports=0)) == [1, 2]
    assert holders(memory, 2.1, "b", 7) == [1, 2], "announced, but its report is still under way"
    workers(memory, 2.2, "b", record(1, until_s=12.0))
    assert holders(memory, 2.3, "b", 7) == [2]


def test_a_report_that_is_seen_by_one_version_speaks_for_the_others() -> None:
    memory = knowing(record(1), record(2))
    assert holders(memory, 1.5, "a", 8, 1, 2) == [1, 2]
    assert holders(memory, 2.0, "b", 7, 1) == [1, 2]
    assert holders(memory, 2.1, "b", 8) == [2]


def test_a_worker_that_came_back_and_left_in_good_order_is_gone_at_once() -> None:
    memory = knowing(record(1), record(2))
    assert workers(memory, 2.0, "b", record(1, until_s=12.0)) == [1, 2]
    assert workers(memory, 2.1, "b") == [2]


def test_a_second_loss_before_the_first_has_healed_forgets_nobody() -> None:
    memory = knowing(record(1), record(2))
    assert workers(memory, 2.0, "b", record(1, until_s=12.0)) == [1, 2]
    assert workers(memory, 3.0, "c") == [1, 2]
    assert holders(memory, 3.0, "c", 7) == [1, 2]
    assert workers(memory, 10.0, "c") == [1], "seen again in between"


def test_an_older_start_that_redis_has_forgotten_does_not_take_its_place_back() -> None:
    memory = knowing(record(2, epoch=2, endpoint="pod:1"))
    zombie = record(1, until_s=12.0, epoch=1, endpoint="pod:1")
    assert workers(memory, 2.0, "b", zombie) == [2]
    newest = record(3, until_s=12.0, epoch=3, endpoint="pod:1")
    assert workers(memory, 2.1, "b", newest) == [3]
    assert workers(memory, 2.2, "b") == []


def test_answers_that_overtook_each_other_forget_nobody() -> None:
    memory = knowing(record(1), record(2))
    assert holders(memory, 2.0, "b", 8, 1) == [1]
    assert holders(memory, 1.9, "b", 7) == [1, 2], "read before the report that the other answer knew"
    both = (record(1, until_s=12.0), record(2, until_s=12.0))
    assert workers(memory, 3.0, "b", *both) == [1, 2]
    assert workers(memory, 2.5, "b", record(1, until_s=12.0)) == [1, 2]
    assert workers(memory, 1.5, "a", *both) == [1, 2]
    assert workers(memory, 3.1, "b", record(1, until_s=12.0)) == [1, 2]


def test_a_clock_that_was_set_back_does_not_stop_the_view() -> None:
    memory = knowing(record(1, until_s=110.0), record(2, until_s=110.0))
    assert workers(memory, 100.0, "a", record(1, until_s=110.0), record(2, until_s=110.0)) == [1, 2]
    assert workers(memory, 40.0, "a", record(1, until_s=50.0)) == [1]


def test_placements_are_remembered_for_so_many_versions() -> None:
    memory = PoolMemory(max_remembered=2)
    workers(memory, 1.0, "a", record(1))
    for number in (1, 2, 1, 3):
        holders(memory, 1.0, "a", number, 1)
    assert [holders(memory, 2.0, "b", number) for number in (1, 3)] == [[1], [1]]
    assert memory.recall([digest(2)]) == {}


@dataclass
class ForgetfulRedis:
    """Leases, reports and the moment since when the pool is known."""

    since: str = ""
    num_losses: int = 0
    leases: dict[int, float] = field(default_factory=dict)
    told: set[int] = field(default_factory=set)

    def announce(self, number: int, now_s: float) -> None:
        self.since = self.since or f"{self.num_losses:04}"
        self.leases[number] = now_s + LEASE_S

    def lose(self) -> None:
        self.since, self.num_losses = "", self.num_losses + 1
        self.leases.clear()
        self.told.clear()

    def listed(self, now_s: float) -> list[WorkerRecord]:
        running = {n: until_s for n, until_s in self.leases.items() if until_s > now_s}
        return [record(n, until_s=until_s, reports=int(n in self.told)) for n, until_s in running.items()]


HEARTBEAT_S = 3
STEPS = st.lists(st.sampled_from(["loss", "read", "die", "tell late", ""]), min_size=5, max_size=60)


@given(STEPS)
@example(["loss"] * 7 + ["tell late", "loss", "loss", "tell late", "read", "read", "loss"])
@example(
    ["loss"] * 5
    + ["read", "loss", "tell late", "loss", "loss", "tell late", "loss", "read", "tell late", "read", "loss"]
)
def test_no_loss_hides_a_living_worker_nor_keeps_a_dead_one_past_its_lease(steps: list[str]) -> None:
    """Three workers with a heartbeat every 3 s, a reader at least every other second, and a loss at any moment."""
    redis, memory, alive, died_at_s = ForgetfulRedis(), PoolMemory(), {0, 1, 2}, {}
    lost_at_s, read, unknown_since_s = 0, set(alive), dict.fromkeys(alive, 0)
    for number in alive:
        redis.announce(number, 0.0)
        redis.told.add(number)
    assert workers(memory, 0.0, redis.since, *redis.listed(0.0)) == holders(memory, 0.0, redis.since, 7, 0, 1, 2)
    for now_s, step in enumerate(steps, 1):
        if step == "die" and len(alive) > 1:
            number = min(alive)
            alive.remove(number)
            died_at_s[number] = now_s
        for number in alive:
            if now_s % HEARTBEAT_S == number:
                redis.announce(number, now_s)
                if step != "tell late":
                    redis.told.add(number)
        if step == "loss" and now_s - lost_at_s >= 2 * HEARTBEAT_S:
            lost_at_s = now_s
            unknown_since_s |= dict.fromkeys(read, now_s)
            read.clear()
            redis.lose()
        if step == "read" or now_s % 2 == 0:
            listed = redis.listed(now_s)
            read |= redis.told
            found = workers(memory, now_s, redis.since, *listed)
            told = [r.info.worker_id for r in listed if r.residency_revision]
            seen = holders(memory, now_s, redis.since, 7, *(int(worker_id[2:]) for worker_id in told))
            assert alive <= set(found)
            assert all(now_s < died_at_s[number] + LEASE_S for number in set(found) - alive)
            known_for_s = LEASE_S - HEARTBEAT_S - 2
            assert {n for n in alive if n in redis.told or now_s - unknown_since_s[n] < known_for_s} <= set(seen)
            assert all(now_s < died_at_s[number] + LEASE_S for number in set(seen) - alive)
