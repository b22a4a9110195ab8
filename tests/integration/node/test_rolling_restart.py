"""Every worker is replaced while clients call them through a Service, as a rolling update does: no call fails."""

import asyncio
import json
import time
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from tests.chaos.fleet import Fleet
from tests.chaos.traffic import Load, Traffic, run_clients
from tests.integration.node.conftest import PROTOS, NodeProgram
from tests.support.tag_ledger import TagLedger
from tests.support.waiting import until

NUM_WORKERS = 3
NUM_ADAPTERS = 24
PYTHON_CLIENTS, NODE_CLIENTS = 8, 8
PAUSE_S = 0.2
ENDS_WITHIN_S = 90.0


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.integration
async def test_a_rolling_restart_fails_no_call_of_python_or_node(node_program: NodeProgram, tmp_path: Path) -> None:
    ledger = TagLedger()
    traffic = Traffic(ledger)
    names = [f"bot-{number}" for number in range(NUM_ADAPTERS)]
    settings = {"lease_s": "2", "log_level": "warning", "model": "step 0.005"}
    settings |= {"drain_delay_s": "1", "max_connection_age_s": "0.5"}
    async with Fleet(tmp_path, **settings) as fleet:
        for name, digest in zip(names, await fleet.push(names, 0), strict=True):
            ledger.begin(name, digest, time.monotonic())
        first = await fleet.add_workers(NUM_WORKERS)
        command = [*node_program("load.js"), str(PROTOS), fleet.proxy.endpoint, str(NODE_CLIENTS)]
        node = await asyncio.create_subprocess_exec(*command, f"{PAUSE_S * 1e3:g}", *names, stdin=PIPE, stdout=PIPE)
        stop = asyncio.Event()
        load = Load(names, PYTHON_CLIENTS, PAUSE_S)
        endpoint = fleet.store_child.spec.endpoint
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(run_clients(traffic, load, endpoint, fleet.proxy.endpoint, stop))
                await until(lambda: traffic.answered >= PYTHON_CLIENTS)
                exits = []
                for old in first:
                    await fleet.add_workers()
                    exits.append(await fleet.drain(old))
                stop.set()
            output, _ = await asyncio.wait_for(node.communicate(b""), ENDS_WITHIN_S)
        finally:
            if node.returncode is None:
                node.kill()
    found = json.loads(output)
    assert exits == [0] * NUM_WORKERS
    assert not found["failures"]
    assert found["answered"] == found["asked"] >= NODE_CLIENTS * NUM_WORKERS
    assert not traffic.failures, [f"{f.kind}: {f.error}" for f in traffic.failures]
    assert not traffic.wrong
    assert traffic.answered == traffic.asked
    assert len(traffic.served_by) == 2 * NUM_WORKERS
    assert not fleet.left_over()
