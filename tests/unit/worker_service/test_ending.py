"""A process ends with its exit code, whatever the engine's thread is doing."""

import subprocess
import sys

import pytest

# Native code that never ends, on the engine's thread, as a step that hangs.
HANGING = """
import asyncio, sys
import torch
from tests.support.fake_model import FakeRunner
from worker_service import ending as module
from worker_service.engine.limits import EngineLimits
from worker_service.engine.loop import Engine
from hotslot.contract.generation import Sampling
from worker_service.engine.messages import SequenceId, StopRules, Submit

module.STOP_TIMEOUT_S = 0.2
LIMITS = EngineLimits(2, 4, 2, 4, 8, 4, 8, 24)
started = asyncio.Event()

class Hanging(FakeRunner):
    def run(self, segments):
        loop.call_soon_threadsafe(started.set)
        a = torch.randn(64, 256, 256)
        while True:
            a = torch.softmax(a @ a, -1)

async def serve(is_lost):
    global loop
    loop = asyncio.get_running_loop()
    engine, lost, ending = Engine(Hanging(LIMITS), LIMITS), asyncio.Event(), module.ProcessEnding()
    engine.start()
    engine.send(Submit(SequenceId(1), (1, 2), (), Sampling(), StopRules(3), arrival_s=0.0))
    await started.wait()
    await asyncio.sleep(0.2)
    if is_lost:
        lost.set()
    else:
        ending.code = module.EXIT_OK
    ending.stop(engine, lost)
    print("stopped")
    return ending

asyncio.run(serve(sys.argv[1] == "lost")).leave()
"""


@pytest.mark.parametrize(("how", "code"), [("lost", 1), ("told to stop", 0)])
def test_an_engine_that_hangs_in_native_code_does_not_change_how_the_process_ends(how: str, code: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HANGING, how], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == code, ended.stderr
    assert ended.stdout.endswith("stopped\n"), "what was written is not lost"
