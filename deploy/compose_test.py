"""Brings the compose file up for real: builds the images, pushes an adapter, generates through both workers."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deploy.container_engine import Engine, EngineError, find_engine
from deploy.demo.model import BASE_MODEL, ensure_model
from deploy.healthcheck import ask
from shared.child_processes import free_ports

ROOT = Path(__file__).resolve().parent.parent
ADAPTER = Path(__file__).parent / "demo" / "adapters" / "pirate"
WHEELS = ROOT / "build" / "wheels"
PROJECT = "hotslot-test"
REFERENCE = "demo/pirate"
PROMPT = "What is the capital of France?"
IMAGES = {"hotslot-store:dev": "deploy/store.Dockerfile", "hotslot-worker:dev": "deploy/worker.Dockerfile"}
PORTS = ("STORE_PORT", "WORKER_A_PORT", "WORKER_B_PORT")
BUCKETS = "1,8"
"""Few, since each is compiled twice while the test waits."""
STORE_READY_TIMEOUT_S = 120.0
WORKER_READY_TIMEOUT_S = 900.0


class ComposeTestError(Exception):
    """The deployment does not do what it should."""


def main() -> int:
    """Run the test; prints each step and what it found."""
    try:
        engine = find_engine()
        say(f"engine: {engine.name}, compose: {' '.join(engine.compose)}")
        keep_local_torch()
        for image, dockerfile in IMAGES.items():
            say(f"building {image}")
            engine.build(image, ROOT / dockerfile, ROOT)
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        environment = {"MODEL_DIR": str(ensure_model()), "BUCKETS": BUCKETS}
        environment |= {name: str(port) for name, port in ports.items()}
        with deployment(engine, environment) as compose:
            check_deployment(compose, ports)
    except (ComposeTestError, EngineError, subprocess.CalledProcessError) as exc:
        print(f"compose-test: FAILED: {exc}", file=sys.stderr)
        return 1
    say("passed")
    return 0


class Compose:
    """Commands on the running deployment."""

    def __init__(self, engine: Engine, environment: dict[str, str]) -> None:
        self._engine = engine
        self._environment = environment

    def __call__(self, *arguments: str, check: bool = True) -> None:
        """Run one compose command."""
        compose = [*self._engine.compose, "-p", PROJECT, "-f", str(ROOT / "docker-compose.yml")]
        subprocess.run([*compose, *arguments], env=self._environment, check=check)

    def inside(self, service: str, *command: str) -> str:
        """Run a command in a service's container; what it printed."""
        # Not through compose: podman-compose prints what it does among what the command prints.
        labels = {"project": PROJECT, "service": service}
        filters = [f"--filter=label=com.docker.compose.{key}={value}" for key, value in labels.items()]
        container = self._output("ps", "--quiet", *filters)
        return self._output("exec", container, *command)

    def _output(self, *arguments: str) -> str:
        command = [self._engine.name, *arguments]
        return subprocess.run(
            command, env=self._environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout.strip()


@contextmanager
def deployment(engine: Engine, environment: dict[str, str]) -> Iterator[Compose]:
    """The compose file, up; torn down with its volumes afterwards, with the logs shown when something failed."""
    compose = Compose(engine, os.environ | engine.environment | environment)
    compose("down", "--volumes", check=False)
    try:
        say("starting")
        compose("up", "--detach", "--no-build")
        yield compose
    except BaseException:
        compose("logs", "--tail", "60", check=False)
        raise
    finally:
        say("tearing down")
        compose("down", "--volumes", check=False)


def check_deployment(compose: Compose, ports: dict[str, int]) -> None:
    """Everything that a deployment is for, once."""
    store, *workers = (f"127.0.0.1:{ports[name]}" for name in PORTS)
    await_ready("store", store, STORE_READY_TIMEOUT_S)
    for worker in workers:
        await_ready("worker", worker, WORKER_READY_TIMEOUT_S)

    for service in ("store", "worker-a", "worker-b"):
        user = compose.inside(service, "id", "-u")
        expect(user == "10001", f"{service} runs as user {user}, expected 10001")
        compose.inside(service, "python", "/opt/hotslot/bin/hotslot-health.py")
    found = compose.inside("store", "python", "-c", "import importlib.util as u; print(u.find_spec('torch'))")
    expect(found == "None", f"the store's image has torch: {found}")

    fleet = hotslot("workers", "--store", store)[0]["workers"]
    expect(len(fleet) == len(workers), f"the store knows {len(fleet)} workers, expected {len(workers)}: {fleet}")

    pushed = hotslot("push", str(ADAPTER), REFERENCE, "--base", BASE_MODEL, "--store", store)[0]
    digest = pushed["version"]["digest"]
    say(f"pushed {REFERENCE}: {digest}")

    answers = [Answer(worker) for worker in workers]
    for answer in answers:
        say(f"{answer.worker_id} served {answer.digests}: {answer.text!r}")
        expect(answer.digests == [digest], f"{answer.worker_id} served {answer.digests}, expected [{digest}]")
    first, second = answers
    expect(first.worker_id != second.worker_id, f"one worker, {first.worker_id}, answered on both ports")
    expect(first.text == second.text, f"the workers disagree: {first.text!r}, {second.text!r}")
    base = Answer(workers[0], adapter="")
    say(f"the base model answers: {base.text!r}")
    expect(base.text != first.text, "the adapter changes nothing")

    say("restarting the store")
    compose("restart", "store")
    await_ready("store", store, STORE_READY_TIMEOUT_S)
    names = [adapter["name"] for adapter in hotslot("ls", "--store", store)[0]["adapters"]]
    expect(names == [REFERENCE], f"after a restart the store has {names}, expected [{REFERENCE!r}]")


class Answer:
    """One generation through the command line."""

    def __init__(self, worker: str, adapter: str = REFERENCE) -> None:
        chosen = ["--adapter", adapter] if adapter else ["--base-only"]
        events = hotslot("generate", *chosen, "--max-tokens", "24", PROMPT, "--worker", worker)
        started = next(event for event in events if event["event"] == "started")
        self.worker_id: str = started["worker_id"]
        self.digests = [served["digest"] for served in started["adapters"]]
        self.text = "".join(event["text"] for event in events if event["event"] == "chunk")


def hotslot(*arguments: str) -> list[Any]:
    """Run the command with `--json`; the documents that it printed."""
    command = [str(Path(sys.executable).with_name("hotslot")), *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ComposeTestError(f"hotslot {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    documents: list[Any] = []
    decoder = json.JSONDecoder()
    rest = done.stdout.strip()
    while rest:
        document, end = decoder.raw_decode(rest)
        documents.append(document)
        rest = rest[end:].lstrip()
    return documents


def await_ready(name: str, address: str, timeout_s: float) -> None:
    """Ask over gRPC until the service says that it is ready."""
    started = time.monotonic()
    status = ""
    while (waited_s := time.monotonic() - started) < timeout_s:
        status = ask(address, "readiness")
        if status == "SERVING":
            say(f"{name} at {address} is ready after {waited_s:.0f} s")
            return
        time.sleep(1.0)
    raise ComposeTestError(f"{name} at {address} is not ready after {timeout_s:.0f} s: {status}")


def keep_local_torch() -> None:
    """Give the image the same build of torch as .venv, when that is one that pip would not choose by itself."""
    installed = version("torch")
    if "+" not in installed or list(WHEELS.glob(f"torch-{installed}-*.whl")):
        return
    say(f"fetching the wheel of torch {installed} for the image")
    shutil.rmtree(WHEELS, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(WHEELS)]
    subprocess.run([*pip, f"torch=={installed}"], check=True)


def expect(holds: bool, failure: str) -> None:
    """Raise ComposeTestError unless it holds."""
    if not holds:
        raise ComposeTestError(failure)


def say(text: str) -> None:
    """One line of progress."""
    print(f"compose-test: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
