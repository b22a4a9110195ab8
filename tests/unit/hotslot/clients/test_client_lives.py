"""Clients in second event loops and after their end: a typed error at once, and closing is always harmless."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from hotslot import (
    BlockingHotslotClient,
    BlockingStoreClient,
    BlockingWorkerClient,
    HotslotClient,
    PlacementClient,
    StoreClient,
    WorkerClient,
)
from hotslot.errors import ClientClosedError, HotslotError, InvalidEndpointError, WrongLoopError
from tests.unit.hotslot.conftest import Served


def answer(client: BlockingHotslotClient) -> str:
    return client.complete("Hi", timeout_s=60.0).text


CALLS: dict[str, tuple[Callable[[list[str]], Any], Callable[[Any], Any]]] = {
    "deployment": (lambda e: HotslotClient(*e), lambda client: client.complete("Hi")),
    "store": (lambda e: StoreClient(e[0]), lambda client: client.resolve("pirate")),
    "placement": (lambda e: PlacementClient(e[0]), lambda client: anext(client.list_workers(), None)),
    "worker": (lambda e: WorkerClient(e[1]), lambda client: client.complete("Hi")),
    "worker's connection": (lambda e: WorkerClient(e[1]), lambda client: client.connect()),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_asyncio_client_in_a_second_loop_names_the_mistake_and_the_cure(served: Served, name: str) -> None:
    make, call = CALLS[name]
    client = make(served.endpoints)  # outside of any loop
    asyncio.run(call(client))
    with pytest.raises(WrongLoopError, match="one in each loop"):
        asyncio.run(call(client))
    asyncio.run(client.close())
    asyncio.run(client.close())
    with pytest.raises(ClientClosedError):
        asyncio.run(call(client))


@pytest.mark.parametrize("name", CALLS)
async def test_closing_twice_is_harmless_and_use_after_it_is_told(served: Served, name: str) -> None:
    make, call = CALLS[name]
    client = make(served.endpoints)
    await call(client)
    await asyncio.gather(client.close(), client.close())
    await client.close()
    with pytest.raises(ClientClosedError, match="is closed"):
        await call(client)
    never_used = make(served.endpoints)
    await never_used.close()
    with pytest.raises(ClientClosedError):
        await call(never_used)


async def test_closing_from_a_loop_beside_the_clients_own_is_refused_and_changes_nothing(served: Served) -> None:
    async with WorkerClient(served.endpoints[1]) as client:
        await client.complete("Hi")
        with pytest.raises(WrongLoopError):
            await asyncio.to_thread(lambda: asyncio.run(client.close()))
        assert (await client.complete("Hi")).text == "Hello, sailor"


async def test_a_call_that_its_clients_end_cuts_short_says_so(served: Served) -> None:
    served.worker.inference.hang_after_pieces = 0
    client = WorkerClient(served.endpoints[1])
    call = asyncio.create_task(client.complete("Hi"))
    await asyncio.to_thread(served.wait_for, lambda: served.worker.inference.hanging)
    await client.close()
    with pytest.raises(ClientClosedError):
        await call


async def test_a_cancelled_call_stays_cancelled(served: Served) -> None:
    served.worker.inference.hang_after_pieces = 0
    async with WorkerClient(served.endpoints[1]) as client:
        call = asyncio.create_task(client.complete("Hi"))
        await asyncio.to_thread(served.wait_for, lambda: served.worker.inference.hanging)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


def test_a_blocking_client_may_be_closed_twice_and_says_that_it_is_closed(served: Served) -> None:
    client = BlockingHotslotClient(*served.endpoints)
    assert answer(client) == "Hello, sailor"
    half_read = client.generate("Hi")
    next(half_read)
    client.store.close()
    client.close()
    client.close()
    for call in (
        lambda: answer(client),
        lambda: client.store.resolve("pirate"),
        client.worker.status,
        lambda: list(client.generate("Hi")),
        lambda: next(half_read),
    ):
        with pytest.raises(ClientClosedError):
            call()
    half_read.close()
    never_used = BlockingStoreClient(served.endpoints[0])
    never_used.close()
    never_used.close()


def test_calls_under_way_in_other_threads_end_when_the_client_is_closed(served: Served) -> None:
    served.worker.inference.hang_after_pieces = 0
    client = BlockingWorkerClient(served.endpoints[1])
    raised: list[BaseException] = []

    def call() -> None:
        try:
            while True:
                client.complete("Hi")
        except HotslotError as exc:
            raised.append(exc)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    served.wait_for(lambda: served.worker.inference.hanging)
    client.close()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert [type(error) for error in raised] == [ClientClosedError] * len(threads)


@pytest.mark.parametrize("make", [StoreClient, WorkerClient, PlacementClient, HotslotClient, BlockingHotslotClient])
def test_a_client_of_nonsense_is_refused_when_it_is_made(make: Callable[[str], object]) -> None:
    with pytest.raises(InvalidEndpointError, match="found 'nonsense', expected host:port"):
        make("nonsense")
