"""docs/habits.md: every line that people are told to type does what it says, on a real store and a worker."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hotslot.cli.app import run
from hotslot.local.children import Child
from tests.support.checkpoints import adapter
from tests.support.echo_model import echo_model
from tests.support.machine_pace import within
from tests.support.stack import Stack
from tests.support.waiting import until

pytestmark = pytest.mark.integration

SPEC = echo_model().spec
TABLE = (Path(__file__).parents[3] / "docs/habits.md").read_text()
ROWS = re.findall(
    r"^\| (docker|ollama|vllm|kubectl|uv) \| `(.+?)` \| `(.+?)` \|$",
    TABLE,
    re.MULTILINE,
)
Hotslot = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def worker(stack: Stack, store_process: Child) -> Iterator[Child]:
    child = stack.launch_echo_worker()
    child.wait_ready(120)
    yield child
    stack.workers.remove(child)
    child.kill()


@pytest.fixture
def hotslot(
    store_process: Child,
    worker: Child,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Hotslot:
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "HOTSLOT_STORE": store_process.spec.endpoint,
        "HOTSLOT_WORKER": worker.spec.endpoint,
        "HOTSLOT_TENANT": "habits",
        "HOTSLOT_DATA_DIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)

    def run_line(line: str) -> tuple[int, str, str]:
        *before, command = line.replace("\\|", "|").split(" | ")
        monkeypatch.setattr(sys, "stdin", io.StringIO(before[0].removeprefix("echo ") + "\n" if before else ""))
        name, *arguments = shlex.split(command)
        assert name == "hotslot"
        capsys.readouterr()
        code = run([worker.spec.endpoint if word == "WORKER" else word for word in arguments])
        return code, *capsys.readouterr()

    return run_line


@pytest.fixture
def pirate(tmp_path: Path) -> Path:
    """A folder for the echo model, and a log to look at."""
    draft, folder = adapter(spec=SPEC, seed=1), tmp_path / "pirate"
    draft.config["base_model_name_or_path"] = SPEC.name
    draft.write(folder)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "store.log").write_text("listening\n")
    return folder


def test_every_line_of_the_table_does_what_it_says(hotslot: Hotslot, pirate: Path) -> None:
    assert len(ROWS) == TABLE.count("\n| ") - 1 > 60, "every row but the title is a line that is run"
    assert {tool for tool, _, _ in ROWS} == {"docker", "ollama", "vllm", "kubectl", "uv"}
    said = {}
    for _, theirs, ours in ROWS:
        code, out, err = hotslot(ours)
        assert code == 0, f"{theirs}: {ours}: {out}{err}"
        said[ours] = out
    assert said["hotslot ls -q"] == said["hotslot ls -o name"] == "pirate\n"
    listed, again = (re.sub(r"\d+ \w+\n", "", said[line]) for line in ("hotslot ls", "hotslot list"))
    assert listed == again, "but for their ages"
    assert len(json.loads(said["hotslot ls -o json"])["adapters"]) == 1
    assert re.search(r"[0-9a-f]{64}", said["hotslot -o wide ls"])
    assert said["hotslot ls -l team=sea"].count("pirate") == 1
    assert "pirate" in said["hotslot ps"]
    assert said["hotslot inspect pirate pirate:v1"].count("adapter ") >= 2
    assert said["hotslot run pirate Ahoy there"].strip()
    assert said["hotslot logs store"] == "listening\n"
    assert said["hotslot rm -y pirate:stable pirate:backup"].count("removed the tag") == 2


def test_a_short_digest_is_taken_wherever_one_is_and_several_that_fit_are_listed(
    hotslot: Hotslot, pirate: Path
) -> None:
    assert hotslot("hotslot push ./pirate short")[0] == 0
    digest = json.loads(hotslot("hotslot show short --json")[1])["version"]["digest"]
    short = digest.removeprefix("sha256:")[:6]
    for line in (
        "show short@{}", "tag short@{} v9", "load short@{}", "pin short@{}", "unpin short@{}", "run short@{} hi",
        "generate -a short@{}=0.5 hi", "default short@{}", "ps -a short@{}", "history short@{}", "cp short@{} short:x",
        "unload short@{}", "pull short@{} ./there", "rm --yes --force short@{}",
    ):  # fmt: skip
        code, out, err = hotslot("hotslot " + line.format(short))
        assert code == 0, f"{line}: {out}{err}"
    assert hotslot("hotslot default --base-only")[0] == 0
    code, _, err = hotslot(f"hotslot show short@{'0' * 8}")
    assert code == 3
    assert "has no version" in err
    assert hotslot("hotslot rm --yes short")[0] == 0


def test_of_several_names_the_wrong_ones_are_said_and_the_others_are_done(hotslot: Hotslot, pirate: Path) -> None:
    for name in ("a", "b"):
        assert hotslot(f"hotslot push ./pirate {name}")[0] == 0
    code, out, err = hotslot("hotslot rm --yes a nobody b")
    assert code == 3
    assert out == "removed the adapter a\nremoved the adapter b\n"
    assert "hotslot: adapter 'nobody' not found" in err
    code, out, _ = hotslot("hotslot undelete a b --json")
    assert [one["adapter"]["name"] for one in json.loads(out)] == ["a", "b"]


def test_a_pulled_folder_is_the_version_that_was_pushed(hotslot: Hotslot, pirate: Path, tmp_path: Path) -> None:
    assert hotslot("hotslot push ./pirate whole")[0] == 0
    assert hotslot("hotslot pull whole ./copy")[0] == 0
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert "which was there already" in hotslot("hotslot push ./copy whole")[1]
    code, _, err = hotslot("hotslot pull whole ./copy")
    assert code == 2
    assert "nothing is overwritten" in err
    assert {path.name for path in tmp_path.iterdir()} == {"pirate", "copy", "logs"}, "nothing half-written is left"


@pytest.mark.parametrize("line", ["ls -w", "top", "logs -f store"])
async def test_ctrl_c_prints_its_line_and_ends_at_once(
    hotslot: Hotslot, pirate: Path, tmp_path: Path, line: str
) -> None:
    heard = tmp_path / "heard"
    with heard.open("w") as err, (tmp_path / "seen").open("w") as out:
        process = subprocess.Popen(  # noqa: ASYNC220 (it is not waited for)
            [sys.executable, "-m", "hotslot", *line.split()], stdout=out, stderr=err, env=dict(os.environ)
        )
        await until(lambda: bool(heard.read_text() + (tmp_path / "seen").read_text()) or line == "top")
        if line == "top":  # It is not a terminal, and shows nothing until its end.
            await until(lambda: bool(psutil.Process(process.pid).net_connections()))
        with within(2.0):  # a tenth of a second alone
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
    assert heard.read_text().endswith("hotslot: interrupted\n")
