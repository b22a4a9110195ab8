"""The file with the process id of `hotslot up`, and the logs beside it, without starting services."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hotslot.cli.app import run
from hotslot.cli.detached import LOG_FILE, running_here, running_pid, start_detached
from hotslot.errors import PreconditionError
from tests.support.waiting import until

HOLDER = """
import signal, sys, time
from pathlib import Path
from hotslot.cli.detached import running_here
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with running_here(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_down_ends_what_holds_the_data_folder_and_waits_for_its_end(
    holder: "subprocess.Popen[str]", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert running_pid(tmp_path) == holder.pid
    with pytest.raises(PreconditionError, match=rf"process {holder.pid}.* has .* already"), running_here(tmp_path):
        raise AssertionError("two have the folder")
    assert run(["stop", "--data-dir", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"stopped": holder.pid}
    assert holder.wait(60) == 0
    assert running_pid(tmp_path) is None
    assert run(["down", "--data-dir", str(tmp_path)]) == 0
    assert "nothing runs on" in capsys.readouterr().err


def test_a_process_id_of_the_past_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "up.pid").write_text(f"{os.getpid()}\n")
    assert running_pid(tmp_path) is None, "the lock says who runs, not the number"


def test_what_does_not_come_up_detached_says_why(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    with pytest.raises(PreconditionError, match=r"ended with 2.*--workers"):
        start_detached(["--workers", "0", f"--data-dir={tmp_path}"], tmp_path, 30)


async def test_logs_show_the_last_lines_and_follow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()
    for name in ("store", "worker-1", "worker-2"):
        (tmp_path / "logs" / f"{name}.log").write_text("".join(f"{name} {i}\n" for i in range(5)))
    assert run(["logs", "store", "-n", "2", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "store 3\nstore 4\n"
    assert run(["logs", "worker", "--tail", "1", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "worker-1 | worker-1 4\nworker-2 | worker-2 4\n"
    assert run(["logs", "nope", "--data-dir", str(tmp_path)]) == 2
    assert "there are store, worker-1, worker-2" in capsys.readouterr().err
    command = [sys.executable, "-m", "hotslot", "logs", "-f", "store", "-n", "1", "--data-dir", str(tmp_path)]
    seen, heard = tmp_path / "seen", tmp_path / "heard"
    with seen.open("w") as out, heard.open("w") as err:
        following = subprocess.Popen(command, stdout=out, stderr=err)  # noqa: ASYNC220 (it is not waited for)
        await until(lambda: seen.read_text() == "store 4\n")
        with (tmp_path / LOG_FILE.parent / "store.log").open("a") as log:
            log.write("half")
            log.flush()
            log.write(" a line\n")
        await until(lambda: seen.read_text() == "store 4\nhalf a line\n")
        following.send_signal(2)
        assert following.wait(60) == 130
    assert heard.read_text() == "hotslot: interrupted\n"
