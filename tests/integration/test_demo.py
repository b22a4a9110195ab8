"""The demo, stopped in the middle: whatever ends it, nothing that it started is left."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXIT_WITHIN_S = 60.0
INTERRUPTED = 130

pytestmark = [pytest.mark.integration, pytest.mark.model, pytest.mark.chaos]


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGTERM, signal.SIGKILL))],
)
def test_a_stopped_demo_leaves_no_process(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "deploy.demo.run"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stdout is not None
        # The worker is being compiled: that is when people lose patience.
        assert any(line.startswith("worker") for line in demo.stdout)
        started = psutil.Process(demo.pid).children(recursive=True)
        demo.send_signal(number)
        demo.stdout.read()
        code = demo.wait(EXIT_WITHIN_S)
    gone, alive = psutil.wait_procs(started, timeout=EXIT_WITHIN_S)
    assert not alive, f"left behind: {alive}"
    assert len(gone) >= 3
    assert code == (-signal.SIGKILL if number is signal.SIGKILL else INTERRUPTED)
