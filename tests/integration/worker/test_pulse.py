"""What a worker tells others of itself: its usual load, and how much each adapter is wanted."""

import asyncio

from shared.fleet.demand import DemandOptions
from shared.fleet.records import Resident
from shared.loops import Loops
from tests.support.echo_model import UNHURRIED_STEP_S, EchoModel
from tests.support.echo_worker import Calls, RunningWorker
from tests.support.memory_store import MemoryStore
from tests.support.waiting import until
from worker_service.pulse import Pulse

QUICK = DemandOptions(smoothing_s=0.05, dwell_s=0.1)


async def test_demand_rises_with_the_sequences_of_an_adapter_and_falls_after_them(
    running: RunningWorker, calls: Calls, store: MemoryStore, model: EchoModel
) -> None:
    wanted, idle = store.add("wanted", model.spec.digest), store.add("idle", model.spec.digest)
    await calls.load("idle")
    model.runner.step_s = UNHURRIED_STEP_S
    told = 0

    def tell() -> None:
        nonlocal told
        told += 1
        pulse.report()

    pulse = Pulse(running.worker, interval_s=0.01, demand=QUICK)
    running.worker.hear_engine(await running.parts.engine.inspect())
    async with Loops() as loops:
        loops.essential("pulse", lambda: pulse.run(running.parts.engine, tell))

        def residents() -> dict[str, Resident]:
            return {resident.digest: resident for resident in pulse.report().residents}

        assert pulse.report().load.mean_in_flight == 0
        rows = pulse.report().load.max_sequences
        generating = [asyncio.create_task(calls.generate("wanted", text="endless")) for _ in range(rows)]
        await until(lambda: wanted in residents() and residents()[wanted].demand == 1.0)
        assert residents()[idle].demand == 0.0
        assert (pulse.report().load.mean_in_flight or 0.0) > rows / 2
        assert told > 0, "others hear of demand without waiting for a heartbeat"
        for task in generating:
            task.cancel()
        await asyncio.wait(generating)
        await until(lambda: residents()[wanted].demand == 0.0)
