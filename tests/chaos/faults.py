"""What is done to a fleet, each with the time until its placements are whole again."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from hotslot import StoreClient
from hotslot.errors import HotslotError
from hotslot.local.children import Child
from tests.chaos.fleet import Fleet
from tests.support.tag_ledger import TagLedger


@dataclass(frozen=True, slots=True)
class Durations:
    """How long things are away."""

    valkey_paused_s: float
    store_away_s: float
    worker_stopped_s: float
    """Past its lease."""
    between_s: float


@dataclass
class Faults:
    """Does one thing at a time, and waits until the fleet has recovered from it."""

    fleet: Fleet
    durations: Durations
    chance: random.Random
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)

    async def one_of_each(self) -> None:
        """Every fault once, in random order."""
        faults: list[Callable[[], Awaitable[None]]] = [
            self.flush_valkey,
            self.restart_valkey,
            self.pause_valkey,
            self.kill_worker,
            self.stop_worker,
            self.drain_worker,
            self.store_away,
        ]
        self.chance.shuffle(faults)
        for fault in faults:
            await fault()
            await asyncio.sleep(self.durations.between_s)

    async def flush_valkey(self) -> None:
        await self.fleet.redis.run(lambda client: client.flushall())
        await self._recovered("Valkey flushed")

    async def restart_valkey(self) -> None:
        self.fleet.restart_valkey()
        await self._recovered("Valkey restarted")

    async def pause_valkey(self) -> None:
        await self.fleet.freeze(self.fleet.stack.valkey_pid, self.durations.valkey_paused_s)
        await self._recovered(f"Valkey paused {self.durations.valkey_paused_s:g} s")

    async def kill_worker(self) -> None:
        self.fleet.kill(self._any_worker())
        await self._recovered("worker killed")
        await self.fleet.add_workers()
        await self._recovered("worker joined")

    async def stop_worker(self) -> None:
        await self.fleet.freeze_worker(self._any_worker(), self.durations.worker_stopped_s)
        await self._recovered(f"worker stopped {self.durations.worker_stopped_s:g} s")

    async def drain_worker(self) -> None:
        self.exit_codes.append(await self.fleet.drain(self._any_worker()))
        await self._recovered("worker drained")
        await self.fleet.add_workers()
        await self._recovered("worker joined")

    async def store_away(self) -> None:
        await self.fleet.restart_store(self.durations.store_away_s)
        await self._recovered(f"store away {self.durations.store_away_s:g} s")

    def _any_worker(self) -> Child:
        return self.chance.choice(list(self.fleet.workers))

    async def _recovered(self, fault: str) -> None:
        self.recovery_s.setdefault(fault, []).append(await self.fleet.time_to_whole())


async def move_tags(
    store_endpoint: str, ledger: TagLedger, versions: dict[str, list[str]], every_s: float, until: asyncio.Event
) -> int:
    """Move one of the names to its next version again and again; returns how often that was acknowledged."""
    moves = 0
    turn = 0
    async with StoreClient(store_endpoint) as store:
        while not until.is_set():
            name = list(versions)[turn % len(versions)]
            digest = versions[name][turn // len(versions) % len(versions[name])]
            turn += 1
            tenure = ledger.begin(name, digest, time.monotonic())
            try:
                await store.set_tag(name, "latest", digest)
            except HotslotError:
                pass  # it may have moved or not
            else:
                ledger.acknowledge(name, tenure, time.monotonic())
                moves += 1
            await asyncio.sleep(every_s)
    return moves
