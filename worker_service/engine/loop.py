"""The engine's thread: hands commands to the core, lets it take its turns, and reports what happened."""

import queue
import threading
import time
from collections.abc import Callable

import structlog

from worker_service.engine.core import EngineCore
from worker_service.engine.limits import EngineLimits, EnginePolicy
from worker_service.engine.listener import EngineListener
from worker_service.engine.messages import EngineCommand, EngineEvent, ModelRunner

log = structlog.get_logger(__name__)

STOP_TIMEOUT_S = 10.0
"""Longest wait for a step that is under way when the engine is to stop."""


class Engine:
    """An engine core on a thread of its own; other threads send it commands.

    **Invariant**: only this thread touches the core, so nothing in it needs a lock.
    """

    def __init__(
        self,
        runner: ModelRunner,
        limits: EngineLimits,
        clock: Callable[[], float] = time.monotonic,
        policy: EnginePolicy | None = None,
        listener: EngineListener | None = None,
    ) -> None:
        """`listener` is called on the engine's thread."""
        self.limits = limits
        self.clock = clock
        self._core = EngineCore(runner, limits, clock, policy, listener)
        self._inbox: queue.SimpleQueue[EngineCommand | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(
        self,
        on_events: Callable[[list[EngineEvent]], None] = lambda events: None,
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the thread, which calls both and must not be blocked by them.

        `on_death` is called when the thread ends, by a bug of ours or because the model is lost: nothing sent to it
        will be answered.
        """
        self._thread = threading.Thread(target=self._run, args=(on_events, on_death), name="engine", daemon=True)
        self._thread.start()

    def send(self, command: EngineCommand) -> None:
        """Hand over a command; never blocks, from any thread."""
        self._inbox.put(command)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """End the thread after the current step; what is under way is dropped without events.

        Returns whether the thread ended. One that hangs is left behind, and ends with the process.
        """
        assert self._thread is not None, "start it first"
        self._inbox.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.error("engine_left_behind", waited_s=timeout_s)
            return False
        return True

    def _run(self, on_events: Callable[[list[EngineEvent]], None], on_death: Callable[[], None]) -> None:
        try:
            while self._take_commands():
                events = self._core.turn()
                if events:
                    on_events(events)
                if self._core.lost is not None:
                    raise self._core.lost
        except Exception:
            log.exception("engine_died")
            on_death()

    def _take_commands(self) -> bool:
        """Pass on what is in the inbox, waiting for something when there is nothing to do; False at the end."""
        block = self._core.idle
        while True:
            try:
                command = self._inbox.get(block=block)
            except queue.Empty:
                return True
            if command is None:
                return False
            self._core.handle(command)
            block = False
