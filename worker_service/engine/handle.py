"""Engine handle: the event loop's side of the engine, commands out and events back to the requests.

Events arrive on the engine's thread, one batch a step, and cross over with one `call_soon_threadsafe`.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from hotslot.errors import EngineFailedError, HotslotError
from hotslot.ids import Digest
from hotslot.single_flight import SingleFlight
from worker_service.engine.messages import (
    Activate,
    Activated,
    AdapterWeights,
    Cancel,
    Deactivate,
    EngineCommand,
    EngineEvent,
    GiveUpDeactivate,
    Inspect,
    SequenceFailed,
    SequenceFinished,
    SequenceId,
    Submit,
    TokenReady,
    Unpin,
)
from worker_service.engine.snapshot import EngineSnapshot

DEFAULT_SILENCE_S = 30.0


class CommandSink(Protocol):
    """The engine, as far as sending goes."""

    def send(self, command: EngineCommand) -> None:
        """Hand over a command; never blocks."""
        ...


class SequenceGroup:
    """The sequences of one request: their events in order, each with the index of its sequence.

    The buffer is bounded by what was asked for: at most max_tokens events per sequence. A reader that is slower than
    the engine gets several tokens at once.
    """

    def __init__(self, client: "EngineHandle", ids: Sequence[SequenceId]) -> None:
        self._client = client
        self._index = {sequence_id: index for index, sequence_id in enumerate(ids)}
        self._open = dict.fromkeys(ids)
        self._events: list[tuple[int, EngineEvent]] = []
        self._arrived = asyncio.Event()

    @property
    def sequence_ids(self) -> tuple[SequenceId, ...]:
        """Its sequences, in the order of their indices."""
        return tuple(self._index)

    async def take(self) -> list[tuple[int, EngineEvent]]:
        """Take the events that have arrived since the last time; waits until there is one."""
        await self._arrived.wait()
        self._arrived.clear()
        events, self._events = self._events, []
        return events

    def end(self, index: int) -> None:
        """Cancel one sequence; nothing more comes from it but what has arrived."""
        for sequence_id, position in self._index.items():
            if position == index and sequence_id in self._open:
                self._client.cancel(sequence_id)
                del self._open[sequence_id]

    def close(self) -> None:
        """Cancel what has not ended; again is harmless."""
        for sequence_id in self._open:
            self._client.cancel(sequence_id)
        self._open.clear()

    def put(self, event: EngineEvent) -> None:
        """Take an event of one of the sequences."""
        if isinstance(event, SequenceFinished | SequenceFailed):
            self._open.pop(event.sequence_id, None)
        self._events.append((self._index[event.sequence_id], event))
        self._arrived.set()


class EngineHandle:
    """Engine as one event loop sees it.

    Create it on the loop, then start the engine with its `on_events` and `on_death`.
    """

    def __init__(
        self, engine: CommandSink, clock: Callable[[], float] = time.monotonic, silence_s: float = DEFAULT_SILENCE_S
    ) -> None:
        """`clock` must be the engine's; one that does not answer for `silence_s` hangs."""
        self.clock = clock
        self._engine = engine
        self._silence_s = silence_s
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._groups: dict[SequenceId, SequenceGroup] = {}
        self._deactivations: SingleFlight[Digest, None] = SingleFlight(ends_unwanted=True)
        self._answers: set[asyncio.Future[Any]] = set()
        """Answers that activations, deactivations and inspections under way wait for."""
        self.lost = asyncio.Event()
        """Set when the engine's thread has ended by a bug, or hangs for good: only a new process helps."""

    @property
    def open_sequences(self) -> int:
        """Sequences whose end has not been heard of."""
        return len(self._groups)

    def submit(self, drafts: Sequence[Submit]) -> SequenceGroup:
        """Submit the sequences of one request; the ids of the drafts are replaced, and each says whether it is alone.

        Raises EngineFailedError when the engine is lost.
        """
        self._refuse_if_lost()
        ids = [SequenceId(next(self._ids)) for _ in drafts]
        group = SequenceGroup(self, ids)
        for sequence_id, draft in zip(ids, drafts, strict=True):
            self._groups[sequence_id] = group
            self._engine.send(replace(draft, sequence_id=sequence_id, is_alone=len(ids) == 1))
        return group

    def cancel(self, sequence_id: SequenceId) -> None:
        """Free what a sequence holds; its late events go nowhere."""
        if self._groups.pop(sequence_id, None) is not None:
            self._engine.send(Cancel(sequence_id))

    async def activate(self, weights: AdapterWeights, *, pin: bool) -> Activated:
        """Bring an adapter into slots; raises SlotsFullError, and EngineFailedError as `fail_all` and `lost` say."""
        outcome: asyncio.Future[Activated] = self._new_answer()
        self._engine.send(Activate(weights, pin, lambda result: self._post(self._resolve, outcome, result)))
        return await outcome

    async def deactivate(self, digest: Digest) -> None:
        """Free an adapter's slots once its last user ended. When the last who waits is cancelled, it is withdrawn.

        Raises AdapterPinnedError when it is pinned, also while this waits, and EngineFailedError as `activate`.
        """
        await self._deactivations.run(digest, lambda: self._deactivate(digest))

    def unpin(self, digest: Digest) -> None:
        """Let an adapter be evicted again."""
        self._engine.send(Unpin(digest))

    async def inspect(self) -> EngineSnapshot:
        """The engine's state. Raises EngineFailedError when it is lost, or does not answer: then it hangs."""
        outcome: asyncio.Future[EngineSnapshot] = self._new_answer()
        self._engine.send(Inspect(lambda snapshot: self._post(self._resolve, outcome, snapshot)))
        try:
            return await asyncio.wait_for(outcome, self._silence_s)
        except TimeoutError as exc:
            raise EngineFailedError(f"the engine has not answered for {self._silence_s:g} s") from exc

    def fail_all(self, error: HotslotError) -> None:
        """End every open sequence and answer every waiter: the engine will not.

        If it goes on after all, it lets go of the sequences and keeps the adapters that were to leave.
        """
        sequence_ids = list(self._groups)
        self._dispatch([SequenceFailed(sequence_id, error) for sequence_id in sequence_ids])
        for sequence_id in sequence_ids:
            self._engine.send(Cancel(sequence_id))
        for answer in list(self._answers):
            self._resolve(answer, error)

    def give_up(self) -> None:
        """Nothing is to be expected of the engine any more."""
        self.lost.set()

    def on_events(self, events: list[EngineEvent]) -> None:
        """Called on the engine's thread."""
        self._post(self._dispatch, events)

    def on_death(self) -> None:
        """Called on the engine's thread when it ends by a bug."""
        self._post(self._bury)

    def _bury(self) -> None:
        self.lost.set()
        self.fail_all(EngineFailedError("the engine has ended; the worker's log has the details"))

    def _dispatch(self, events: list[EngineEvent]) -> None:
        for event in events:
            group = self._groups.get(event.sequence_id)
            if group is None:
                continue
            if not isinstance(event, TokenReady):
                del self._groups[event.sequence_id]
            group.put(event)

    async def _deactivate(self, digest: Digest) -> None:
        has_left: asyncio.Future[None] = self._new_answer()
        self._engine.send(Deactivate(digest, lambda result: self._post(self._resolve, has_left, result)))
        try:
            await has_left
        except (HotslotError, asyncio.CancelledError):
            # Nothing is left to withdraw where the engine itself refused, and nothing comes of it.
            self._engine.send(GiveUpDeactivate(digest))
            raise

    def _refuse_if_lost(self) -> None:
        if self.lost.is_set():
            raise EngineFailedError("the engine is lost and the worker about to end; call another worker")

    def _new_answer(self) -> "asyncio.Future[Any]":
        """A future that `fail_all` knows of. Raises EngineFailedError when the engine is lost."""
        self._refuse_if_lost()
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)
        return answer

    def _post(self, callback: Callable[..., None], *args: object) -> None:
        """Run on the event loop; after its end no listener is left."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *args)

    @staticmethod
    def _resolve(future: "asyncio.Future[object]", result: object) -> None:
        if future.done():
            return
        if isinstance(result, HotslotError):
            future.set_exception(result)
        else:
            future.set_result(result)
