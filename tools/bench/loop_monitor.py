"""Times every callback of an event loop, and keeps the stack of those that take long.

A callback's wall time includes what other threads and processes took from it; its CPU time is the loop's thread's own.
"""

import asyncio
import gc
import resource
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from typing import Any

SAMPLE_EVERY_S = 0.001


@dataclass
class LoopStalls:
    """The longest callbacks, and how many there were."""

    wall_ms: float = 0.0
    cpu_ms: float = 0.0
    num_callbacks: int = 0
    num_above_5_wall: int = 0
    num_above_5_cpu: int = 0
    late_ms: float = 0.0
    """The latest that a timer of one millisecond ever was: what a waiting call feels, queueing included."""
    worst: list[tuple[float, float, str]] = field(default_factory=list)
    """CPU and wall milliseconds of callbacks with more CPU than `SLOW_MS`, and what they were."""

    def as_row(self) -> dict[str, float | int]:
        return {
            "longest_callback_cpu_ms": round(self.cpu_ms, 2),
            "longest_callback_wall_ms": round(self.wall_ms, 2),
            "callbacks": self.num_callbacks,
            "callbacks_above_5_ms_cpu": self.num_above_5_cpu,
            "callbacks_above_5_ms_wall": self.num_above_5_wall,
            "latest_timer_ms": round(self.late_ms, 2),
        }


SLOW_MS = 3.0
MAX_WORST = 200


class LoopMonitor:
    """Watches the running loop of the process that makes it; there is one at a time."""

    def __init__(self) -> None:
        self.stalls = LoopStalls()
        self._thread_id = threading.get_ident()
        self._began_s = 0.0
        self._sampled = ""
        self._collecting_began_s = 0.0
        self._collected: list[str] = []
        self._original = original = asyncio.events.Handle._run
        self._stopped = threading.Event()

        def timed(handle: Any) -> None:
            if threading.get_ident() != self._thread_id:
                return original(handle)
            self._sampled = ""
            self._collected.clear()
            faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
            cpu, wall = time.thread_time(), time.perf_counter()
            self._began_s = wall
            try:
                return original(handle)
            finally:
                wall_ms = (time.perf_counter() - wall) * 1e3
                self._began_s = 0.0
                cpu_ms = (time.thread_time() - cpu) * 1e3
                faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - faults
                self._collected.append(f"{faults} pages faulted in")
                self._note(wall_ms, cpu_ms, handle)

        asyncio.events.Handle._run = timed  # type: ignore[method-assign, assignment]
        gc.callbacks.append(self._note_collection)
        threading.Thread(target=self._sample, daemon=True, name="loop-monitor").start()
        self._ticking = asyncio.create_task(self._tick())

    def stop(self) -> LoopStalls:
        """Watch no longer; returns what was counted."""
        asyncio.events.Handle._run = self._original  # type: ignore[method-assign]
        gc.callbacks.remove(self._note_collection)
        self._stopped.set()
        self._ticking.cancel()
        return self.stalls

    def _note(self, wall_ms: float, cpu_ms: float, handle: Any) -> None:
        stalls = self.stalls
        stalls.num_callbacks += 1
        stalls.wall_ms, stalls.cpu_ms = max(stalls.wall_ms, wall_ms), max(stalls.cpu_ms, cpu_ms)
        stalls.num_above_5_wall += wall_ms > 5
        stalls.num_above_5_cpu += cpu_ms > 5
        if cpu_ms > SLOW_MS and len(stalls.worst) < MAX_WORST:
            what = "\n".join((repr(handle)[:300], *self._collected, self._sampled))
            stalls.worst.append((cpu_ms, wall_ms, what))

    def _note_collection(self, phase: str, info: dict[str, int]) -> None:
        if threading.get_ident() != self._thread_id:
            return
        if phase == "start":
            self._collecting_began_s = time.thread_time()
        else:
            took_ms = (time.thread_time() - self._collecting_began_s) * 1e3
            self._collected.append(f"garbage collection of generation {info['generation']}: {took_ms:.1f} ms")

    async def _tick(self) -> None:
        while True:
            before_s = time.perf_counter()
            await asyncio.sleep(0.001)
            self.stalls.late_ms = max(self.stalls.late_ms, (time.perf_counter() - before_s) * 1e3 - 1)

    def _sample(self) -> None:
        while not self._stopped.wait(SAMPLE_EVERY_S):
            began_s = self._began_s
            if began_s and not self._sampled and time.perf_counter() - began_s > SLOW_MS / 1e3:
                frame = sys._current_frames().get(self._thread_id)
                self._sampled = "".join(traceback.format_stack(frame)[-8:])
