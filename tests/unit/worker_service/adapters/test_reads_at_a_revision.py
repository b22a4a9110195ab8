"""Reads of a reference at a revision: never older, whatever comes late, breaks off or is a new catalog; and no herd."""

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotslot.backoff import Backoff
from hotslot.errors import (
    AdapterNotFoundError,
    CatalogBehindError,
    SlotsFullError,
    StoreUnavailableError,
)
from hotslot.ids import DEFAULT_TENANT, Digest
from hotslot.references import Reference
from tests.support.followed_catalog import DIGESTS, HUGE, NAME, OTHER, Store, Worker, following
from tests.support.waiting import until
from worker_service.adapters import catalog_watch
from worker_service.adapters.known_reference import ReferenceLimits


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_watch, "BACKOFF", Backoff(0.0, 0.0))


async def test_a_write_is_served_though_no_change_was_heard_of_and_the_new_version_is_not_ready() -> None:
    store = Store(deaf=True)
    async with Worker(store) as worker:
        await following(store, worker)
        written = store.move()
        assert await worker.digest() == DIGESTS[0], "as before: the watch vouches for it"
        assert await worker.digest(written) == DIGESTS[1]
        assert await worker.digest(written - 1) == DIGESTS[0], "it held then, and costs no wait"
        assert await worker.digest() == DIGESTS[0], "the name moves once the new version is ready"
        store.preparing.set()
        await until(lambda: DIGESTS[1] in store.resident)
        assert await worker.digest() == DIGESTS[1]


async def test_a_deletion_is_not_found_at_once_and_so_is_what_was_made_again_found() -> None:
    store = Store(deaf=True)
    async with Worker(store) as worker:
        await following(store, worker)
        with pytest.raises(AdapterNotFoundError):
            await worker.digest(store.delete())
        assert await worker.digest(store.move()) == DIGESTS[1]


async def test_what_was_heard_of_is_not_asked_for() -> None:
    store = Store()
    store.preparing.set()
    async with Worker(store) as worker:
        await following(store, worker)
        await until(lambda: worker.watch.held_until(DEFAULT_TENANT, NAME, store.revision) == store.revision)
        written = [store.move(OTHER) for _ in range(5)][-1]
        await until(lambda: worker.watch.held_until(DEFAULT_TENANT, NAME, 1) == written)
        questions = store.questions
        assert await worker.digest(written) == DIGESTS[0]
        assert store.questions == questions


async def test_a_question_from_before_the_write_does_not_answer_for_it() -> None:
    store = Store(deaf=True, answer_turns=20)
    async with Worker(store) as worker:
        before = asyncio.create_task(worker.digest())
        await until(lambda: store.questions == 1)
        store.move()
        assert await worker.digest(store.revision) == DIGESTS[0]
        with pytest.raises(AdapterNotFoundError):
            await before


async def test_many_who_wait_ask_once() -> None:
    store = Store(deaf=True, answer_turns=20)
    async with Worker(store) as worker:
        await following(store, worker)
        for _ in range(5):
            questions, written = store.questions, store.move()
            found = await asyncio.gather(*(worker.digest(written) for _ in range(200)))
            assert set(found) == {DIGESTS[store.written - 1]}
            assert store.questions == questions + 1


async def test_a_revision_that_the_catalog_never_had_is_a_typed_error_and_asks_little() -> None:
    store = Store(deaf=True)
    limits = ReferenceLimits(staleness_s=0.0, watched_staleness_s=1e9, behind_pause_s=0.1)
    async with Worker(store, limits) as worker:
        await following(store, worker)
        questions, began_s = store.questions, asyncio.get_running_loop().time()
        for _ in range(4):
            asked = await asyncio.gather(*(worker.digest(HUGE + n) for n in range(100)), return_exceptions=True)
            assert {type(error) for error in asked} == {CatalogBehindError}
        took_s = asyncio.get_running_loop().time() - began_s
        assert store.questions - questions <= 2 * (1 + took_s / 0.1)
        assert await worker.digest(store.move()) == DIGESTS[1], "others of the tenant are served"


async def test_without_the_store_what_held_is_served_and_what_is_newer_is_a_typed_error() -> None:
    store = Store()
    store.preparing.set()
    async with Worker(store) as worker:
        await following(store, worker)
        held = store.move(OTHER)
        await until(lambda: worker.watch.held_until(DEFAULT_TENANT, NAME, 1) == held)
        store.away = True
        await until(lambda: not worker.watch.is_live(DEFAULT_TENANT))
        assert await worker.digest(held) == DIGESTS[0]
        with pytest.raises(StoreUnavailableError):
            await worker.digest(held + 1)


async def test_a_swap_that_failed_does_not_hide_what_was_written() -> None:
    store = Store(prepare_error=SlotsFullError("full", subject="slots"))
    store.preparing.set()
    async with Worker(store) as worker:
        await following(store, worker)
        written = store.move()
        assert await worker.digest(written) == DIGESTS[1]
        await asyncio.sleep(0.01)
        assert await worker.digest(written) == DIGESTS[1]
        assert await worker.digest() == DIGESTS[0]


async def test_an_explicit_load_is_at_the_revision_too() -> None:
    store = Store(deaf=True)
    async with Worker(store) as worker:
        await following(store, worker)
        written = store.move()
        assert (await worker.cache.begin_flip(DEFAULT_TENANT, NAME, written)).digest == DIGESTS[1]
        with pytest.raises(CatalogBehindError):
            await worker.cache.begin_flip(DEFAULT_TENANT, NAME, written + 1)


async def test_an_explicit_load_shares_the_question_that_the_watch_has_asked() -> None:
    store = Store()
    store.preparing.set()
    async with Worker(store) as worker:
        await following(store, worker)
        questions, written = store.questions, store.move()
        await until(lambda: store.questions > questions)
        for _ in range(3):
            assert (await worker.cache.begin_flip(DEFAULT_TENANT, NAME, written)).digest == DIGESTS[1]
        assert store.questions == questions + 1
        store.move(OTHER)
        assert (await worker.cache.begin_flip(DEFAULT_TENANT, NAME)).digest == DIGESTS[1]
        assert store.questions > questions + 1, "without a revision the store is asked, whatever is known"


async def test_a_move_to_what_was_announced_asks_nothing() -> None:
    store = Store(announces=True)
    limits = ReferenceLimits(staleness_s=1e9, watched_staleness_s=1e9, just_now_s=1e9)
    async with Worker(store, limits) as worker:
        await following(store, worker)
        questions, written = store.questions, store.move()
        await until(lambda: worker.watch.held_until(DEFAULT_TENANT, NAME, written) == written)
        store.move(OTHER)
        later = store.revision
        await until(lambda: worker.watch.held_until(DEFAULT_TENANT, NAME, written) == later)
        assert await worker.digest() == DIGESTS[0], "the name moves once the new version is ready"
        for revision in (written, later):
            assert await worker.digest(revision) == DIGESTS[1]
            assert (await worker.cache.begin_flip(DEFAULT_TENANT, NAME, revision)).digest == DIGESTS[1]
        assert store.questions == questions
        with pytest.raises(CatalogBehindError):
            await worker.cache.begin_flip(DEFAULT_TENANT, NAME, later + 1)


async def test_a_move_to_what_could_not_be_brought_is_asked_for() -> None:
    store = Store(announces=True, bring_turns=0)
    async with Worker(store) as worker:
        await following(store, worker)
        questions, written = store.questions, store.move()
        assert await worker.digest(written) == DIGESTS[1]
        assert store.questions > questions


async def test_a_slow_load_does_not_move_a_name_back() -> None:
    store = Store(deaf=True)
    store.preparing.set()
    async with Worker(store) as worker:
        await following(store, worker)
        store.move()
        slow = await worker.cache.begin_flip(DEFAULT_TENANT, NAME)
        newest = await worker.digest(store.move())
        await until(lambda: newest in store.resident)
        worker.cache.flip(slow)
        await until(lambda: worker.cache.resolve_known(DEFAULT_TENANT, NAME).digest == newest)  # type: ignore[union-attr]


@pytest.mark.parametrize("new_writes", [2, 4, 6])
async def test_revisions_of_a_catalog_that_is_no_more_stand_for_nothing(new_writes: int) -> None:
    """Also where the new one has come as far, or further, before the worker is back."""
    store = Store()
    limits = ReferenceLimits(staleness_s=1e9, watched_staleness_s=1e9)
    async with Worker(store, limits) as worker:
        await following(store, worker)
        old = [store.move(OTHER) for _ in range(3)][-1]
        store.resident.add(await worker.digest(old, OTHER))
        await until(lambda: worker.watch.held_until(DEFAULT_TENANT, OTHER, old) == old == store.revision)
        questions = store.questions
        store.begin_anew()
        store.answer_turns = 100
        for _ in range(new_writes - 1):
            store.move()
        written = store.move(OTHER)
        await until(lambda: store.questions > questions)
        assert await worker.digest(written, OTHER) == DIGESTS[store.written - 1], (
            "though everything is being asked anew only now"
        )


@dataclass
class Asked:
    """One request, and all that it may be answered with."""

    reference: Reference
    min_revision: int
    catalog: int
    revision: int
    """Of that catalog, when it was asked."""
    task: "asyncio.Task[Digest]"


ACTIONS = ("move", "move other", "delete", "ask", "ask", "ask", "ask far ahead", "ask plainly", "deaf", "hear")
WORLDS = ("away", "back", "begin anew", "forget residents", "ready", "announce", "be silent")


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(st.sampled_from(ACTIONS + WORLDS), st.integers(0, 12), st.integers(0, 9)), max_size=40),
    st.integers(0, 6),
)
def test_no_schedule_serves_a_state_from_before_the_revision(
    schedule: list[tuple[str, int, int]], answer_turns: int
) -> None:
    asyncio.run(_run(schedule, answer_turns))


async def _run(schedule: list[tuple[str, int, int]], answer_turns: int) -> None:
    store = Store(answer_turns=answer_turns)
    asked: list[Asked] = []
    async with Worker(store) as worker:

        def ask(reference: Reference, min_revision: int) -> None:
            task = asyncio.create_task(worker.digest(min_revision, reference))
            asked.append(Asked(reference, min_revision, len(store.catalogs) - 1, store.revision, task))

        store.move()
        for action, turns, choice in schedule:
            reference = (NAME, OTHER)[choice % 2]
            match action:
                case "move" | "move other":
                    store.move(NAME if action == "move" else OTHER)
                case "delete" if reference in store.states[-1]:
                    store.delete(reference)
                case "ask" if store.revision:
                    ask(reference, max(1, store.revision - choice // 2))
                case "ask far ahead":
                    ask(reference, store.revision + 1 + choice)
                case "ask plainly":
                    ask(reference, 0)
                case "deaf" | "hear":
                    store.deaf = action == "deaf"
                case "away" | "back":
                    store.away = action == "away"
                case "begin anew" if store.stood == len(store.catalogs) or store.answered < len(store.catalogs):
                    # Not in the moment between a worker's first answer and its stream, which learns of the catalog.
                    # A store ends before another one is there; its streams end with it.
                    was_away, store.away = store.away, True
                    await until(lambda: not worker.watch.is_live(DEFAULT_TENANT))
                    store.begin_anew()
                    # Before a worker is back it may have come further than the one that was lost.
                    for _ in range(choice):
                        store.move(reference)
                    store.away = was_away
                case "forget residents":
                    store.resident.clear()
                case "ready":
                    store.preparing.set()
                case "announce" | "be silent":
                    store.announces, store.bring_turns = action == "announce", choice
            for _ in range(turns):
                await asyncio.sleep(0)
        store.preparing.set()
        async with asyncio.timeout(60):
            await asyncio.gather(*(one.task for one in asked), return_exceptions=True)
    for one in asked:
        _check(store, one)


def _check(store: Store, one: Asked) -> None:
    if not one.min_revision:
        return
    allowed: set[Digest | None] = set()
    for states in store.catalogs[one.catalog :]:
        allowed |= {state.get(one.reference) for state in states[one.min_revision :]}
    error = one.task.exception()
    match error:
        case None:
            assert one.task.result() in allowed
        case AdapterNotFoundError():
            absent = [state for states in store.catalogs[one.catalog :] for state in states]
            assert any(one.reference not in state for state in absent)
        case CatalogBehindError():
            is_anew = len(store.catalogs) - 1 > one.catalog
            assert one.min_revision > one.revision or is_anew
        case StoreUnavailableError():
            pass
        case _:
            raise AssertionError(f"no error of a read: {error!r}")
