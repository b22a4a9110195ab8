"""Collects the events of a generation into one answer."""

from collections.abc import AsyncIterator

from hotslot.contract.generation import (
    Choice,
    Chunk,
    Completion,
    Finished,
    GenerationEvent,
    Started,
    TokenLogprob,
)
from hotslot.errors import InternalError


async def collect(events: AsyncIterator[GenerationEvent]) -> Completion:
    """The completion that a stream of events makes up; raises InternalError when it ends too early."""
    started: Started | None = None
    texts: dict[int, list[str]] = {}
    token_ids: dict[int, list[int]] = {}
    logprobs: dict[int, list[TokenLogprob]] = {}
    finished: dict[int, Finished] = {}
    async for event in events:
        match event:
            case Started():
                started = event
            case Chunk():
                texts.setdefault(event.choice, []).append(event.text)
                token_ids.setdefault(event.choice, []).extend(event.token_ids)
                logprobs.setdefault(event.choice, []).extend(event.logprobs)
            case Finished():
                finished[event.choice] = event
    if started is None or not finished or texts.keys() - finished.keys():
        raise InternalError("the worker ended the stream before the generation was finished; try again")
    return Completion(
        started,
        tuple(
            Choice("".join(texts.get(i, ())), tuple(token_ids.get(i, ())), tuple(logprobs.get(i, ())), end)
            for i, end in sorted(finished.items())
        ),
    )
