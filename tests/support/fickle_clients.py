"""Clients that stream, and leave in the middle as often as not."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from hotslot import AdapterSelection, Chunk, GenerationRequest, Sampling, Stop, WorkerClient
from hotslot.errors import HotslotError, QueueFullError, SlotsFullError

LEAVES = 0.5
"""The share of requests whose client leaves before their end."""


@dataclass
class Streams:
    """What became of every request."""

    ended: int = 0
    left: int = 0
    """Cancelled, some before their first token."""
    turned_away: int = 0
    """Refused because all places were taken."""
    tokens: int = 0
    open: int = 0
    most_open: int = 0
    failures: list[HotslotError] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Habits:
    """What clients ask for."""

    names: Sequence[str]
    prompts: Sequence[str]
    max_tokens: int
    patience_s: float
    """The longest that a client which will leave stays."""

    def request(self, chance: random.Random) -> GenerationRequest:
        """None, one or two adapters; one or two answers."""
        names = chance.sample(list(self.names), chance.choice((0, 1, 1, 1, 2)))
        return GenerationRequest(
            chance.choice(self.prompts) + f" {chance.randrange(1000)}",
            tuple(AdapterSelection(name, chance.choice((1.0, 0.5))) for name in names),
            base_only=not names,
            sampling=Sampling(temperature=chance.choice((0.0, 1.0)), seed=chance.randrange(2**31)),
            stop=Stop(max_tokens=chance.randint(1, self.max_tokens)),
            num_choices=chance.choice((1, 1, 1, 2)),
        )


async def _stream(client: WorkerClient, request: GenerationRequest, streams: Streams) -> None:
    async with aclosing(client.generate(request)) as events:
        async for event in events:
            if isinstance(event, Chunk):
                streams.tokens += len(event.token_ids)


async def run_fickle_clients(
    client: WorkerClient, habits: Habits, streams: Streams, count: int, stop: asyncio.Event, seed: int = 7
) -> None:
    """`count` clients, each with one stream at a time, until `stop`; every stream has ended when this returns."""

    async def one(number: int) -> None:
        chance = random.Random(seed * 1_000_003 + number)
        while not stop.is_set():
            leaves_after_s = chance.uniform(0.0, habits.patience_s) if chance.random() < LEAVES else None
            streams.open += 1
            streams.most_open = max(streams.most_open, streams.open)
            try:
                async with asyncio.timeout(leaves_after_s):
                    await _stream(client, habits.request(chance), streams)
                streams.ended += 1
            except TimeoutError:
                streams.left += 1
            except (QueueFullError, SlotsFullError):
                streams.turned_away += 1
                await asyncio.sleep(chance.uniform(0.05, 0.2))
            except HotslotError as exc:
                streams.failures.append(exc)
                await asyncio.sleep(0.2)
            finally:
                streams.open -= 1

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(one(number))
