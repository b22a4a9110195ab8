"""The clients without an event loop: the same surface, and interrupts that leave nothing running."""

import asyncio
import inspect
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hotslot import (
    BlockingHotslotClient,
    BlockingPlacementClient,
    BlockingStoreClient,
    BlockingWorkerClient,
    Chunk,
    GenerationRequest,
    HotslotClient,
    PlacementClient,
    Started,
    StoreClient,
    WorkerClient,
)
from hotslot.errors import AdapterNotFoundError, RequestDeadlineError
from tests.unit.hotslot.conftest import SERVED_REVISION, Served


@pytest.fixture
def hotslot(served: Served) -> Iterator[BlockingHotslotClient]:
    with BlockingHotslotClient(*served.endpoints) as client:
        yield client


def surface(cls: type[Any]) -> set[str]:
    return {name for name, member in inspect.getmembers(cls) if callable(member) and not name.startswith("_")}


@pytest.mark.parametrize(
    ("blocking", "original"),
    [
        (BlockingStoreClient, StoreClient),
        (BlockingPlacementClient, PlacementClient),
        (BlockingWorkerClient, WorkerClient),
        (BlockingHotslotClient, HotslotClient),
    ],
)
def test_both_kinds_of_client_have_the_same_methods(blocking: type[Any], original: type[Any]) -> None:
    assert surface(blocking) == surface(original)
    for name in surface(original):
        assert inspect.signature(getattr(blocking, name)).parameters.keys() == (
            inspect.signature(getattr(original, name)).parameters.keys()
        )


def test_calls_and_listings_work_without_a_loop(hotslot: BlockingHotslotClient) -> None:
    assert len(list(hotslot.store.list_adapters())) == 5
    assert hotslot.store.resolve("pirate").revision == SERVED_REVISION
    assert hotslot.complete("Hi").text == "Hello, sailor"
    assert hotslot.worker.complete(GenerationRequest("Hi")).text == "Hello, sailor"
    with pytest.raises(AdapterNotFoundError):
        hotslot.store.get("nobody")


def test_leaving_a_stream_early_cancels_the_request(served: Served, hotslot: BlockingHotslotClient) -> None:
    served.worker.inference.hang_after_pieces = 1
    events = hotslot.generate("Hi")
    assert isinstance(next(events), Started)
    assert isinstance(next(events), Chunk)
    del events
    served.wait_for(lambda: served.worker.inference.cancelled)


def test_an_interrupt_while_waiting_cancels_the_request(served: Served, hotslot: BlockingHotslotClient) -> None:
    inference = served.worker.inference
    inference.hang_after_pieces = 0

    def interrupt() -> None:
        served.wait_for(lambda: inference.hanging)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        list(hotslot.generate("Hi"))
    served.wait_for(lambda: inference.cancelled)


@pytest.mark.parametrize("is_sent", [True, False])
def test_an_interrupt_while_a_call_is_handed_to_the_loop_leaves_nothing_running(
    served: Served, hotslot: BlockingHotslotClient, monkeypatch: pytest.MonkeyPatch, is_sent: bool
) -> None:
    assert hotslot.worker.complete("Hi").text == "Hello, sailor", "the loop runs"
    served.worker.inference.hang_after_pieces = 0
    loop = hotslot.loop._loops[os.getpid()]._loop
    assert loop is not None
    hand_over = loop.call_soon_threadsafe

    def interrupted(*args: Any) -> None:
        monkeypatch.undo()
        if is_sent:
            hand_over(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(hotslot.generate("Hi"))
    served.worker.inference.hang_after_pieces = None
    assert hotslot.worker.complete("Hi").text == "Hello, sailor"


def test_a_deadline_reaches_the_caller(served: Served, hotslot: BlockingHotslotClient) -> None:
    served.worker.inference.hang_after_pieces = 1
    with pytest.raises(RequestDeadlineError):
        hotslot.worker.complete("Hi", timeout_s=0.2)


async def test_a_blocking_client_may_be_used_beside_a_running_loop(served: Served) -> None:
    def work() -> str:
        with BlockingWorkerClient(served.endpoints[1]) as worker:
            return worker.complete("Hi").text

    assert await asyncio.to_thread(work) == "Hello, sailor"
