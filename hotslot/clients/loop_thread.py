"""An event loop in a thread of its own, for callers that have none; a child process gets one of its own."""

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, Generic, TypeVar

from hotslot.errors import ClientClosedError

T = TypeVar("T")

CANCEL_TIMEOUT_S = 2.0
PARK_TIMEOUT_S = 1.0
WHAT = "the client"


class LoopThread:
    """An event loop in a daemon thread, which begins with the first call of each process."""

    def __init__(self) -> None:
        self.is_closed = False
        # A fork leaves a parent's loop without its thread, and its selector shared: nothing of it may be touched.
        self._loops: dict[int, _Loop] = {}

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and wait for it; an interrupt of the waiting thread, at any moment, cancels it.

        Raises ClientClosedError when the loop has ended, or ends meanwhile.
        """
        if self.is_closed:
            coroutine.close()
            raise ClientClosedError(WHAT)
        process = os.getpid()
        if process not in self._loops:
            self._loops.setdefault(process, _Loop())
            # The interpreter would wait for ever at its end for a stream that is still in gRPC's hands.
            atexit.register(self.stop)
        return self._loops[process].run(coroutine)

    def stop(self) -> None:
        """End the loop and its thread; again is harmless."""
        self.is_closed = True
        atexit.unregister(self.stop)
        loop = self._loops.get(os.getpid())
        if loop is not None:
            loop.stop()


class _Loop:
    """The loop of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: set[_Call[Any]] = set()
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._is_parked = threading.Event()
        self._may_go_on = threading.Event()
        _LOOPS.add(self)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        call = _Call(coroutine)
        try:
            self._begin(call)
            return call.outcome.result()
        except CancelledError as exc:
            if self._is_closed:
                raise ClientClosedError(WHAT) from exc
            raise
        except BaseException:
            # After an interrupt, let the cancelled coroutine clean up before the caller goes on to close things.
            self._cancel(call)
            raise
        finally:
            with self._lock:
                self._calls.discard(call)

    def stop(self) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(lambda: loop.create_task(_wind_down(loop)))
        thread.join()
        loop.close()
        for call in list(self._calls):
            call.give_up()

    def park(self) -> None:
        """Halt the loop's thread between two steps of its tasks, for a fork in another thread; `go_on` ends it."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None or not thread.is_alive() or thread is threading.current_thread():
            return
        self._is_parked.clear()
        self._may_go_on.clear()
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._halt)
            self._is_parked.wait(PARK_TIMEOUT_S)

    def go_on(self) -> None:
        """End a halt; harmless without one."""
        self._may_go_on.set()

    def _halt(self) -> None:
        self._is_parked.set()
        self._may_go_on.wait()

    def _begin(self, call: "_Call[Any]") -> None:
        with self._lock:
            if self._is_closed:
                raise ClientClosedError(WHAT)
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="hotslot-client", daemon=True)
                self._thread.start()
            self._calls.add(call)
            self._loop.call_soon_threadsafe(call.start, self._loop)

    def _cancel(self, call: "_Call[Any]") -> None:
        with self._lock:
            is_known = call in self._calls
        if not is_known or self._loop is None:
            call.cancel()
            return
        # The loop may be closed by now, and with it the call ended.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call.cancel)
            call.ended.wait(CANCEL_TIMEOUT_S)


_LOOPS: weakref.WeakSet[_Loop] = weakref.WeakSet()


def _park_all() -> None:
    # The child drops what a thread of the parent had on its stack: an asynchronous generator that a step held there
    # is ended in the child without its event loop, which now and then was a segmentation fault.
    for loop in list(_LOOPS):
        loop.park()


def _let_all_go_on() -> None:
    for loop in list(_LOOPS):
        loop.go_on()


os.register_at_fork(before=_park_all, after_in_parent=_let_all_go_on)


class _Call(Generic[T]):
    """One coroutine on its way to the loop's thread and through it; `start` and `cancel` are the loop's to call."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self.outcome: Future[T] = Future()
        self.ended = threading.Event()
        self._coroutine = coroutine
        self._task: asyncio.Task[T] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin."""
        self._task = loop.create_task(self._coroutine)
        self._task.add_done_callback(self._end)

    def cancel(self) -> None:
        """End it, whether or not it has begun; harmless once it has ended."""
        if self._task is not None:
            self._task.cancel()
        else:
            self._coroutine.close()
            self.ended.set()

    def give_up(self) -> None:
        """Tell who waits that the loop has ended; harmless once the call has."""
        if not self.outcome.done():
            self.outcome.set_exception(ClientClosedError(WHAT))
        if self._task is None:
            self._coroutine.close()
        self.ended.set()

    def _end(self, task: "asyncio.Task[T]") -> None:
        self.ended.set()
        if task.cancelled():
            self.outcome.cancel()
        elif (error := task.exception()) is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(task.result())


async def _wind_down(loop: asyncio.AbstractEventLoop) -> None:
    """Let what still runs clean up, then end the loop."""
    others = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=CANCEL_TIMEOUT_S)
    loop.stop()
