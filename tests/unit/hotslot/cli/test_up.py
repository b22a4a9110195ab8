"""`hotslot up` before, while and after it starts: checks, stages, its context, and a quick end."""

import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from hotslot.cli.app import run
from hotslot.cli.detached import last_words
from hotslot.cli.stages import WORKER_STAGES, Stages, WorkerStages
from hotslot.cli.supervisor import UpPlan
from hotslot.cli.up import _Ending, _Stopped
from hotslot.local.child_processes import free_port, free_ports
from hotslot.local.children import Child, ChildFailedError, ChildSpec
from hotslot.local.embedded_valkey import embedded_valkey
from hotslot.local.identity_files import IdentityFiles
from hotslot.local.listeners import listener
from tests.support.machine_pace import within
from tests.support.stubbed_up import ROOT, STUB, write_stubs

Started = tuple["subprocess.Popen[str]", dict[str, int]]
Up = Callable[..., Started]
WAIT_S = 90.0
"""Longest start of stubs on a machine that is busy with other tests."""


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """Runs `hotslot up` with stubs, its output in the files out and err, until it is up; returns its ports."""
    write_stubs(tmp_path)
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> Started:
        numbers = dict(zip(("store", "worker", "gateway"), free_ports(3), strict=True))
        ports = [word for name, port in numbers.items() for word in (f"--{name}-port", str(port))]
        command = [sys.executable, "-m", "hotslot", "up", "--model", "m", "--data-dir", "data", *ports, *arguments]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HOTSLOT_")}
        with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
            process = subprocess.Popen(
                command, cwd=tmp_path, env={**inherited, "PYTHONPATH": str(ROOT), **environment},
                stdout=out, stderr=err, text=True,
            )  # fmt: skip
        started.append(process)
        deadline_s = time.monotonic() + WAIT_S
        while "Ctrl-C ends it all" not in (tmp_path / "out").read_text() and process.poll() is None:
            assert time.monotonic() < deadline_s, (tmp_path / "err").read_text()
            time.sleep(0.05)
        return process, numbers

    yield start
    for process in started:
        process.kill()
        process.communicate()


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that compute all the time."""
    with ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(process.kill)
        yield


@pytest.mark.parametrize("load", [0, 6])
def test_ctrl_c_prints_its_line_at_once_and_ends_within_two_seconds_also_under_load(
    up: Up, tmp_path: Path, load: int
) -> None:
    # Services that do not want to end stand for requests that run: they have a second.
    process, _ = up(HOTSLOT_STUB_STUBBORN="1")
    with busy(load):
        time.sleep(1 if load else 0)
        with within(2.0):
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
    assert (
        (tmp_path / "err").read_text().endswith("hotslot: stopping; requests have 1 s, and Ctrl-C again ends at once\n")
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_ctrl_c_that_is_lost_in_the_end_of_an_object_ends_it_all_the_same(tmp_path: Path) -> None:
    class Lossy:
        def __del__(self) -> None:
            ending.ask(signal.SIGINT)
            raise _Stopped

    ending = _Ending(15.0, is_own_grace=False)
    ending.check()
    Lossy()
    gc.collect()
    with pytest.raises(_Stopped):
        ending.check()
    assert ending.grace_s == 1


def test_a_grace_that_was_given_is_kept_by_ctrl_c(up: Up, tmp_path: Path) -> None:
    process, _ = up("--grace", "3", HOTSLOT_STUB_STUBBORN="1")
    begin_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert time.monotonic() - begin_s > 3


def test_a_start_in_a_pipe_has_a_line_for_each_check_and_each_stage(up: Up, tmp_path: Path) -> None:
    up()
    lines = (tmp_path / "err").read_text().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("  ok ")][:2] == ["compiler", "model"]
    stages = [line for line in lines if re.fullmatch(r"hotslot: \[ *\d+ s\] .*", line)]
    for part in ("checking this machine", "store: starting", "worker-1: finding", "gateway: starting"):
        assert sum(part in stage for stage in stages) == 1, lines
    assert len(lines) == len(set(lines)), "a stage has one line"


def test_stages_of_a_worker_are_those_that_its_log_says_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A start that takes over what an earlier one recorded leaves stages out."""
    log = tmp_path / "worker-1.log"
    log.write_text("an earlier start: startup_stage_begun stage=load\n")
    heard = WorkerStages(Stages(), [("worker-1", log, log.stat().st_size)], is_first=True)
    names = [name for name in WORKER_STAGES if name not in ("expect", "record")]
    lines = [
        f"2026 [info] {event} \x1b[36mstage\x1b[0m=\x1b[35m{name}\x1b[0m\n"
        for name in names
        for event in ("startup_stage_begun", *(["startup_stage"] if name != "self_test" else []))
    ]
    anew = '{"event": "startup_stage_begun", "stage": "load"}\n'
    with log.open("a") as file:
        for line in [*lines, anew, "startup_stage_begun stage=unknown\n"]:
            file.write(line)
            file.flush()
            heard.look()
    heard.close()
    said = [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()]
    assert [line.partition("; ")[0] for line in said] == [
        *(f"worker-1: {WORKER_STAGES[name]}" for name in names), "worker-1: joining the fleet",
        "worker-1: loading the weights",
    ]  # fmt: skip
    assert sum("takes a minute or more" in line for line in said) == 3, "where it begins, and where it takes long"


def test_up_keeps_a_context_and_does_not_take_the_place_of_the_users_choice(up: Up, tmp_path: Path) -> None:
    config = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    process, ports = up(**config)
    file = tmp_path / "config" / "hotslot" / "contexts.json"
    identity = tmp_path / "data" / "identity"
    local = {
        "store": f"127.0.0.1:{ports['store']}", "worker": f"127.0.0.1:{ports['worker']}",
        "ca_file": str(identity / "trusted.crt"), "token_file": str(identity / "user.token"),
        "worker_name": "worker.hotslot",
    }  # fmt: skip
    assert json.loads(file.read_text()) == {"current": "local", "contexts": {"local": local}}
    assert "context use" not in (tmp_path / "out").read_text(), "it is in use already"
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    prod = {"store": "prod:7400"}
    file.write_text(json.dumps({"current": "prod", "contexts": {"prod": prod, "local": {**local, "tenant": "me"}}}))
    _, ports = up(**config)
    document = json.loads(file.read_text())
    assert (document["current"], document["contexts"]["prod"]) == ("prod", prod)
    assert document["contexts"]["local"]["store"] == f"127.0.0.1:{ports['store']}"
    assert document["contexts"]["local"]["tenant"] == "me"
    assert "hotslot context use local" in (tmp_path / "out").read_text()


def test_a_data_folder_of_before_gets_an_identity_keeps_it_and_can_do_without(up: Up, tmp_path: Path) -> None:
    config = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    file, identity = tmp_path / "config" / "hotslot" / "contexts.json", tmp_path / "data" / "identity"

    def ended(*arguments: str) -> tuple[str, dict[str, str]]:
        """What a start said, and the context that it kept."""
        process, _ = up(*arguments, **config)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (tmp_path / "err").read_text()
        return (tmp_path / "err").read_text(), json.loads(file.read_text())["contexts"]["local"]

    said, context = ended("--insecure")
    assert "--insecure: no certificates and no tokens" in said
    assert (set(context), identity.exists()) == ({"store", "worker"}, False)
    said, context = ended()
    assert "insecure" not in said
    assert set(context) == {"store", "worker", "ca_file", "token_file", "worker_name"}
    made = {path: path.read_bytes() for path in identity.rglob("*") if path.is_file()}
    ended()
    assert {path: path.read_bytes() for path in identity.rglob("*") if path.is_file()} == made
    assert set(ended("--insecure")[1]) == {"store", "worker"}, "the context is true again"
    assert run(["renew", "--data-dir", str(tmp_path / "data")]) == 0
    ended()
    now = {path: path.read_bytes() for path in identity.rglob("*") if path.is_file()}
    assert {path.name for path in made if made[path] != now[path]} == {
        "store.crt", "store.key", "worker-1.crt", "worker-1.key",
    }  # fmt: skip
    assert run(["renew", "--data-dir", str(tmp_path / "elsewhere")]) == 5


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (
            ["--store-port", "17400", "--worker-port", "17400"],
            "port 17400 is given twice, by --store-port and --worker-port",
        ),
        (["--store-port", "17402", "--worker-port", "17400", "-w", "3"], "port 17402 is given twice"),
        (["--gateway-port", "17500", "--worker-port", "17500"], "by --worker-port and --gateway-port"),
        (["--worker-port", "65530", "-w", "10"], "the workers' ports would go up to 65536"),
    ],
)
def test_equal_ports_are_refused_before_anything_is_touched(
    arguments: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["-d"]):
        assert run(["up", *arguments, *more, "--data-dir", str(tmp_path / "data")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert part in line
    assert not (tmp_path / "data").exists()


def test_a_taken_port_is_refused_with_the_process_that_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["up", "--gateway-port", str(port), "--data-dir", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"port {port} is taken by process {os.getpid()} (" in line
    assert line.endswith("choose another with --gateway-port")
    assert not list(tmp_path.glob("logs/*")), "nothing was started"


@pytest.mark.parametrize("kind", ["closed", "silent", "web"])
def test_a_redis_that_is_none_is_told_within_five_seconds(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1] if kind != "closed" else free_port()
        if kind == "web":
            threading.Thread(
                target=lambda: server.accept()[0].sendall(b"HTTP/1.1 400 Bad\r\n\r\n"), daemon=True
            ).start()
        ports = [word for name, p in zip("swg", free_ports(3), strict=True) for word in (OPTIONS[name], str(p))]
        url = f"redis://:SECRET@127.0.0.1:{port}"
        with within(5.0):
            assert run(["up", *ports, "--redis-url", url, "--data-dir", str(tmp_path)]) == 7
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hotslot: --redis-url (HOTSLOT_REDIS_URL): redis://:***@127.0.0.1")
    assert "SECRET" not in line
    assert not list(tmp_path.glob("logs/*")), "nothing was started"


OPTIONS = {"s": "--store-port", "w": "--worker-port", "g": "--gateway-port"}


def test_a_machine_that_cannot_serve_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    (tmp_path / "model").mkdir()
    ports = [word for name, p in zip("swg", free_ports(3), strict=True) for word in (OPTIONS[name], str(p))]
    command = ["up", *ports, "--model", str(tmp_path / "model"), "--data-dir", str(tmp_path / "data")]
    assert run(command) == 5
    err = capsys.readouterr().err
    assert "  fail  compiler" in err
    assert err.splitlines()[-1].startswith("hotslot: nothing was started: compiler: no no-such-compiler on PATH")
    assert "model: " in err.splitlines()[-1]
    assert run([*command, "--json"]) == 5
    out, err = capsys.readouterr()
    assert (out, json.loads(err)["error"]["reason"]) == ("", "FAILED_PRECONDITION")
    assert not list(tmp_path.glob("data/logs/*"))


def test_another_process_that_answers_in_a_childs_place_is_found_out(tmp_path: Path) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    spec = ChildSpec("first", STUB, endpoint, {"HOTSLOT_LISTEN": endpoint}, tmp_path / "first.log")
    first = Child(spec)
    first.wait_ready(WAIT_S)
    # Asleep and deaf to its port, as one is that has not come so far yet.
    second = Child(ChildSpec("second", "this", endpoint, {}, tmp_path / "second.log"))
    try:
        assert listener(int(endpoint.rpartition(":")[2])) is not None
        with pytest.raises(ChildFailedError, match=rf"is answered by process {first.pid} \(.*rather than by second"):
            second.wait_ready(WAIT_S)
    finally:
        first.kill()
        second.kill()


def test_last_words_are_the_error_and_not_the_stages_before_it() -> None:
    printed = "hotslot: [   0 s] store: starting\n  ok compiler\nhotslot: store ended with 1; the end of x:\n  why\n"
    assert last_words(printed) == "store ended with 1; the end of x:\n  why"
    assert last_words("Traceback\nValueError") == "Traceback\nValueError"


@pytest.mark.parametrize(
    ("is_secured", "chosen", "expected"),
    [(True, None, str(Path.home())), (False, None, None), (True, "/srv/adapters", "/srv/adapters"), (True, "", "")],
)
def test_folders_of_the_user_may_be_imported_from_where_callers_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_secured: bool, chosen: str | None, expected: str | None
) -> None:
    monkeypatch.delenv("HOTSLOT_IMPORT_ROOTS", raising=False)
    if chosen is not None:
        monkeypatch.setenv("HOTSLOT_IMPORT_ROOTS", chosen)
    identity = IdentityFiles(tmp_path) if is_secured else None
    plan = UpPlan("demo", "demo", 1, 7400, 7500, tmp_path, "redis://localhost", None, identity=identity)
    store = plan.store()
    assert {**os.environ, **store.settings}.get("HOTSLOT_IMPORT_ROOTS") == expected


def test_the_password_of_a_redis_is_on_no_command_line_of_a_start_in_the_background(tmp_path: Path) -> None:
    write_stubs(tmp_path)
    ports = [word for name, p in zip("swg", free_ports(3), strict=True) for word in (OPTIONS[name], str(p))]
    with embedded_valkey(password="SECRET") as valkey:
        command = [sys.executable, "-m", "hotslot", "up", "-d", "--json", "--model", "m", "--data-dir", "data", *ports]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOTSLOT_REDIS_URL": valkey.url}
        started = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False
        )
        assert started.returncode == 0, started.stderr
        process = psutil.Process(json.loads(started.stdout)["pid"])
        try:
            children = process.children(recursive=True)
            assert len(children) == 3
            assert "SECRET" not in "".join(" ".join(one.cmdline()) for one in (process, *children))
            assert any(valkey.url in one.environ().values() for one in children)
        finally:
            assert run(["down", "--data-dir", str(tmp_path / "data")]) == 0
