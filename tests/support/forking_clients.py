"""Scenes with clients and forks, each in an interpreter of its own, since nothing else may have used gRPC before.

python -m tests.support.forking_clients SCENE STORE WORKER
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable

from hotslot import BlockingHotslotClient, StoreClient, WorkerClient
from hotslot.errors import ForkedClientError, HotslotError

TIMEOUT_S = 30.0
CHILD_S = 60.0
AT_ONCE_S = 2.0
ANSWER, REVISION = "Hello, sailor", 11


class Child:
    """A forked child that runs a function; its end is bounded."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._read, write = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            begun_s = time.monotonic()
            try:
                outcome: object = function()
            except HotslotError as exc:
                outcome = exc
            said = type(outcome).__name__, str(outcome), time.monotonic() - begun_s
            os.write(write, json.dumps(said).encode())
            os._exit(0)
        os.close(write)

    def outcome(self) -> tuple[str, str, float]:
        """Class and text of what the function returned or raised, and how long it took."""
        deadline_s = time.monotonic() + CHILD_S
        status = None
        while status is None and time.monotonic() < deadline_s:
            done, code = os.waitpid(self._pid, os.WNOHANG)
            status = code if done else None
            time.sleep(0.01)
        if status is None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        assert status is not None, "the child hangs"
        assert status == 0, f"the child ended with {status}"
        with os.fdopen(self._read, "rb") as stream:
            kind, text, took_s = json.loads(stream.read())
        return str(kind), str(text), float(took_s)

    def assert_answers(self) -> None:
        """It got what it asked for."""
        kind, text, _ = self.outcome()
        assert (kind, text) == ("str", ANSWER)

    def assert_refused_at_once(self) -> None:
        """It was told that it may not, and what to do."""
        kind, text, took_s = self.outcome()
        assert kind == ForkedClientError.__name__, text
        assert "after the fork" in text
        assert took_s < AT_ONCE_S


def answer(client: BlockingHotslotClient) -> str:
    return client.complete("Hi", timeout_s=TIMEOUT_S).text


def made_before_and_used_after(store: str, worker: str) -> None:
    client = BlockingHotslotClient(store, worker)
    for _ in range(3):
        Child(lambda: answer(client)).assert_answers()
    assert answer(client) == ANSWER
    client.close()


def prefork_server(store: str, worker: str) -> None:
    client = BlockingHotslotClient(store, worker)
    children = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            with client:
                assert answer(client) == ANSWER
                assert client.worker.complete("Hi", timeout_s=TIMEOUT_S).text == ANSWER
                assert client.store.resolve("pirate").revision == REVISION
            sys.exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4


def child_leaves_while_in_use(store: str, worker: str) -> None:
    with BlockingHotslotClient(store, worker) as client:
        events = client.generate("Hi")
        next(events)
        pid = os.fork()
        if pid == 0:
            sys.exit(0)
        status = os.waitpid(pid, 0)[1]
        assert status == 0, f"the child ended with {status}"
        assert list(events), "the parent's stream goes on"
        assert answer(client) == ANSWER


def in_use_before(store: str, worker: str) -> None:
    client = BlockingHotslotClient(store, worker)
    assert answer(client) == ANSWER
    uses: list[Callable[[], object]] = [
        lambda: answer(client),
        lambda: client.worker.complete("Hi", timeout_s=TIMEOUT_S).text,
        lambda: answer(BlockingHotslotClient(store, worker)),
        lambda: asyncio.run(StoreClient(store).resolve("pirate")),
    ]
    for use in uses:
        Child(use).assert_refused_at_once()
        assert answer(client) == ANSWER, "the parent goes on"
    client.close()


def with_a_stream_open(store: str, worker: str) -> None:
    client = BlockingHotslotClient(store, worker)
    events = client.generate("Hi")
    next(events)
    for use in (
        lambda: next(events),
        lambda: answer(client),
        lambda: answer(BlockingHotslotClient(store, worker)),
    ):
        Child(use).assert_refused_at_once()
    assert list(events), "the parent's stream goes on"
    client.close()


def closed_in_the_child(store: str, worker: str) -> None:
    client = BlockingHotslotClient(store, worker)
    events = client.generate("Hi")
    next(events)

    def close() -> str:
        client.close()
        client.close()
        return ANSWER

    # A fault of 2 in 100 children has to be seen.
    for _ in range(60):
        Child(close).assert_answers()
    assert list(events), "the parent's stream goes on"
    assert answer(client) == ANSWER
    client.close()


def closed_before(store: str, worker: str) -> None:
    def work() -> str:
        with BlockingHotslotClient(store, worker) as client:
            return answer(client)

    assert work() == ANSWER
    for _ in range(20):
        Child(work).assert_answers()
    assert work() == ANSWER


def loop_forked_into_the_child(store: str, worker: str) -> None:
    async def run() -> None:
        async with WorkerClient(worker) as client:
            assert (await client.complete("Hi")).text == ANSWER

            def in_a_new_loop() -> object:
                return asyncio.run(client.complete("Hi", timeout_s=TIMEOUT_S))

            def in_the_inherited_loop() -> object:
                return client.complete("Hi", timeout_s=TIMEOUT_S).send(None)

            Child(in_a_new_loop).assert_refused_at_once()
            Child(in_the_inherited_loop).assert_refused_at_once()
            assert (await client.complete("Hi")).text == ANSWER

    asyncio.run(run())


SCENES: dict[str, Callable[[str, str], None]] = {
    scene.__name__: scene
    for scene in (
        made_before_and_used_after,
        prefork_server,
        child_leaves_while_in_use,
        in_use_before,
        with_a_stream_open,
        closed_in_the_child,
        closed_before,
        loop_forked_into_the_child,
    )
}

if __name__ == "__main__":
    SCENES[sys.argv[1]](*sys.argv[2:])
