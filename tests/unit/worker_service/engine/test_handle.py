"""The bridge between the event loop and the engine's thread, with a recording engine."""

import asyncio
import threading
from dataclasses import dataclass, field

import pytest

from hotslot.contract.generation import FinishReason, Sampling
from hotslot.errors import EngineFailedError, SlotsFullError
from hotslot.ids import digest_of
from tests.support.echo_model import EchoWeights
from tests.support.waiting import until
from worker_service.engine.handle import EngineHandle
from worker_service.engine.messages import (
    Activate,
    Activated,
    Cancel,
    Deactivate,
    EngineCommand,
    EngineEvent,
    GiveUpDeactivate,
    SampledToken,
    SequenceFailed,
    SequenceFinished,
    SequenceId,
    StopRules,
    Submit,
    TokenReady,
)

DIGEST = digest_of(b"adapter")
DRAFT = Submit(SequenceId(0), (1, 2), (), Sampling(), StopRules(4), 0.0)
WEIGHTS = EchoWeights(DIGEST, 8, 10)


@dataclass
class Recorder:
    """An engine that does nothing but remember."""

    commands: list[EngineCommand] = field(default_factory=list)

    def send(self, command: EngineCommand) -> None:
        self.commands.append(command)


def connected() -> tuple[EngineHandle, Recorder]:
    engine = Recorder()
    return EngineHandle(engine), engine


def from_engine(client: EngineHandle, *events: EngineEvent) -> None:
    thread = threading.Thread(target=client.on_events, args=(list(events),))
    thread.start()
    thread.join()


def token(sequence_id: int, token_id: int) -> TokenReady:
    return TokenReady(SequenceId(sequence_id), SampledToken(token_id), 0.0, 0.0, 0.0)


async def test_a_slow_reader_gets_several_tokens_at_once_and_in_order() -> None:
    client, _ = connected()
    group = client.submit([DRAFT])
    for token_id in range(5):
        from_engine(client, token(1, token_id))
    await asyncio.sleep(0)
    events = await group.take()
    assert [event.token.token_id for _, event in events if isinstance(event, TokenReady)] == list(range(5))


async def test_events_of_one_step_reach_the_requests_they_belong_to() -> None:
    client, _ = connected()
    first, second = client.submit([DRAFT, DRAFT]), client.submit([DRAFT])
    from_engine(client, token(2, 7), token(3, 8), token(1, 6))
    assert [(i, e.token.token_id) for i, e in await first.take() if isinstance(e, TokenReady)] == [(1, 7), (0, 6)]
    assert len(await second.take()) == 1


async def test_closing_cancels_what_has_not_ended_only() -> None:
    client, engine = connected()
    group = client.submit([DRAFT, DRAFT, DRAFT])
    from_engine(
        client,
        SequenceFinished(SequenceId(1), FinishReason.STOP, None, 0.0),
        SequenceFailed(SequenceId(2), EngineFailedError("x")),
    )
    await group.take()
    group.close()
    group.close()
    assert [command for command in engine.commands if isinstance(command, Cancel)] == [Cancel(SequenceId(3))]
    assert client.open_sequences == 0


async def test_late_events_of_cancelled_sequences_go_nowhere() -> None:
    client, _ = connected()
    client.submit([DRAFT]).close()
    from_engine(client, token(1, 5))
    await asyncio.sleep(0)
    assert client.open_sequences == 0


async def test_an_activation_brings_its_outcome_across() -> None:
    client, engine = connected()
    wanted = asyncio.create_task(client.activate(WEIGHTS, pin=False))
    refused = asyncio.create_task(client.activate(WEIGHTS, pin=True))
    await until(lambda: len(engine.commands) == 2)
    first, second = engine.commands
    assert isinstance(first, Activate)
    assert isinstance(second, Activate)
    outcome = Activated(DIGEST, (0,), False, 0.0, 0.0)
    threading.Thread(target=first.done, args=(outcome,)).start()
    threading.Thread(target=second.done, args=(SlotsFullError("full", subject="slots"),)).start()
    assert await wanted == outcome
    with pytest.raises(SlotsFullError):
        await refused


async def test_a_deactivation_is_shared_and_withdrawn_with_the_last_who_waits() -> None:
    client, engine = connected()
    waiting = [asyncio.create_task(client.deactivate(DIGEST)) for _ in range(2)]
    await until(lambda: len(engine.commands) == 1)
    waiting[0].cancel()
    await until(waiting[0].done)
    assert len(engine.commands) == 1
    waiting[1].cancel()
    await until(lambda: len(engine.commands) == 2)
    assert engine.commands[1:] == [GiveUpDeactivate(DIGEST)]
    again = asyncio.create_task(client.deactivate(DIGEST))
    await until(lambda: len(engine.commands) == 3)
    command = engine.commands[2]
    assert isinstance(command, Deactivate)
    command.done(None)
    await again
    assert len(engine.commands) == 3


async def test_when_the_engine_is_stuck_everybody_who_waits_is_told() -> None:
    client, engine = connected()
    groups = [client.submit([DRAFT]), client.submit([DRAFT, DRAFT])]
    calls = [
        client.activate(WEIGHTS, pin=False),
        client.deactivate(DIGEST),
        client.deactivate(DIGEST),
        client.inspect(),
    ]
    waiting = [asyncio.create_task(call) for call in calls]
    await until(lambda: len(engine.commands) == 6)
    client.fail_all(EngineFailedError("stuck"))
    async with asyncio.timeout(60):
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["stuck"] * 4
    assert engine.commands.count(GiveUpDeactivate(DIGEST)) == 1, "if it goes on, the adapter stays"
    for group in groups:
        assert all(isinstance(event, SequenceFailed) for _, event in await group.take())
    assert client.open_sequences == 0


async def test_nothing_is_asked_of_an_engine_that_is_lost() -> None:
    client, engine = connected()
    client.give_up()
    for call in (client.activate(WEIGHTS, pin=True), client.deactivate(DIGEST), client.inspect()):
        with pytest.raises(EngineFailedError):
            await asyncio.wait_for(call, 60)
    assert engine.commands == []
