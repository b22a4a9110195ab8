"""Scenes of the demo with a running deployment: one mixed batch, then a hot-swap under load."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from hotslot import AdapterSelection, ChatMessage, Chunk, GenerationRequest, Started, Stop, WorkerClient
from hotslot.contract.control import LoadResult

ANSWER_TOKENS = 40
LOAD_STREAMS = 6
"""Streams that run while the swap happens."""
FIRST_TOKENS = 10
"""Each stream has had this many before anything is measured."""
CALM_S = 3.0
"""Time to watch before and after the swap."""


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One row of the mixed batch."""

    name: str
    digest: str
    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class MixedBatch:
    """All rows, with how many steps of the model they took together."""

    question: str
    answers: tuple[BatchRow, ...]
    num_steps: int


def ask(
    question: str, adapter: str = "", *, max_tokens: int = ANSWER_TOKENS, ignore_eos: bool = False
) -> GenerationRequest:
    """A greedy chat request, to one adapter or to the base."""
    return GenerationRequest(
        (ChatMessage("user", question),),
        (AdapterSelection(adapter),) if adapter else (),
        base_only=not adapter,
        stop=Stop(max_tokens=max_tokens, ignore_eos=ignore_eos),
    )


async def answer(worker: WorkerClient, question: str, adapter: str = "") -> BatchRow:
    """One complete answer."""
    completion = await worker.complete(ask(question, adapter))
    digest = completion.started.adapters[0].digest if completion.started.adapters else ""
    choice = completion.choices[0]
    return BatchRow(adapter or "base", digest, choice.text.strip(), len(choice.token_ids))


async def mixed_batch(worker: WorkerClient, question: str, adapters: list[str]) -> MixedBatch:
    """Ask the base and every adapter the same question at the same time."""
    before = (await worker.status()).steps
    answers = await asyncio.gather(*(answer(worker, question, name) for name in ("", *adapters)))
    return MixedBatch(question, tuple(answers), (await worker.status()).steps - before)


@dataclass
class Traffic:
    """Streams that never stop; what came of them, while they run."""

    arrivals_s: list[list[float]]
    """Time of each token, by stream."""
    gaps_s: list[tuple[float, float]] = field(default_factory=list)
    """(when it ended, how long it was) of every wait for a token but a request's first."""
    digests: list[tuple[float, str]] = field(default_factory=list)
    """(time of the first token, digest) of every request to the adapter that is swapped."""

    def tokens_between(self, begin_s: float, end_s: float) -> int:
        """Tokens of all streams in a stretch of time."""
        return sum(begin_s <= at_s <= end_s for stream in self.arrivals_s for at_s in stream)

    def longest_gap_s(self, begin_s: float, end_s: float) -> float:
        """The longest that any stream waited for a token."""
        gaps = [gap_s for ended_s, gap_s in self.gaps_s if begin_s <= ended_s <= end_s]
        return max(gaps, default=0.0)


async def stream_for_ever(worker: WorkerClient, traffic: Traffic, index: int, adapter: str, *, watched: bool) -> None:
    """Ask again and again; the tokens' times go to `traffic`."""
    while True:
        request = ask("Tell me a long story about the sea.", adapter, max_tokens=60, ignore_eos=True)
        last_s = 0.0
        async with aclosing(worker.generate(request)) as events:
            async for event in events:
                now_s = time.monotonic()
                if isinstance(event, Started) and watched:
                    traffic.digests.append((now_s, event.adapters[0].digest))
                if isinstance(event, Chunk):
                    traffic.arrivals_s[index].extend([now_s] * len(event.token_ids))
                    if last_s:
                        traffic.gaps_s.append((now_s, now_s - last_s))
                    last_s = now_s


@dataclass(frozen=True, slots=True)
class Swap:
    """A hot-swap under load, and what the streams saw of it."""

    result: LoadResult
    call_s: float
    tokens_meanwhile: int
    tokens_a_second: float
    longest_gap_before_s: float
    longest_gap_s: float
    before: BatchRow
    after: BatchRow
    old_requests: int
    new_requests: int


async def hot_swap(
    worker: WorkerClient, name: str, others: list[str], question: str, move_tag: Callable[[], Awaitable[None]]
) -> Swap:
    """Let streams of `name` and other adapters run, have its tag moved, and load what the tag stands for then.

    Raises what a stream raises.
    """
    before = await answer(worker, question, name)
    adapters = [name, name, *others, ""][:LOAD_STREAMS]
    traffic = Traffic([[] for _ in adapters])
    tasks = [
        asyncio.create_task(stream_for_ever(worker, traffic, index, adapter, watched=adapter == name))
        for index, adapter in enumerate(adapters)
    ]
    try:
        while any(len(stream) < FIRST_TOKENS for stream in traffic.arrivals_s):
            await _run_for(tasks, 0.05)
        calm_from_s = time.monotonic()
        await _run_for(tasks, CALM_S)
        await move_tag()
        began_s = time.monotonic()
        result = await worker.load(name)
        ended_s = time.monotonic()
        after = await answer(worker, question, name)
        await _run_for(tasks, CALM_S)
        done_s = time.monotonic()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    new_digest = result.adapter.digest
    return Swap(
        result=result,
        call_s=ended_s - began_s,
        tokens_meanwhile=traffic.tokens_between(began_s, ended_s),
        tokens_a_second=traffic.tokens_between(calm_from_s, done_s) / (done_s - calm_from_s),
        longest_gap_before_s=traffic.longest_gap_s(calm_from_s, began_s),
        longest_gap_s=traffic.longest_gap_s(began_s, done_s),
        before=before,
        after=after,
        old_requests=sum(digest != new_digest for _, digest in traffic.digests),
        new_requests=sum(digest == new_digest for _, digest in traffic.digests),
    )


async def _run_for(tasks: Sequence[asyncio.Task[None]], duration_s: float) -> None:
    """Let the streams run; raises what one of them raised."""
    done, _ = await asyncio.wait(tasks, timeout=duration_s, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
