"""Brings the compose file up for real: builds the images, pushes an adapter, generates through both workers.

    python -m deploy.compose_test --buckets 1 --buckets default --mask ATEN_CPU_CAPABILITY=avx2,ONEDNN_MAX_CPU_ISA=AVX2

Each --buckets is brought up by itself, and all of them once more for each --mask, with these variables in the workers.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deploy.container_engine import ContainerEngine, EngineError, find_engine
from deploy.demo.http_request import ask_over_http
from deploy.healthcheck import ask
from hotslot.local.child_processes import free_ports
from worker_service.demo_model import BASE_MODEL, ensure_model

ROOT = Path(__file__).resolve().parent.parent
ADAPTER = Path(__file__).parent / "demo" / "adapters" / "pirate"
WHEELS = ROOT / "build" / "wheels"
PROJECT = "hotslot-test"
REFERENCE = "demo/pirate"
PROMPT = "What is the capital of France?"
IMAGES = {"hotslot-store:dev": "deploy/store.Dockerfile", "hotslot-worker:dev": "deploy/worker.Dockerfile"}
PORTS = ("STORE_PORT", "WORKER_A_PORT", "WORKER_B_PORT", "GATEWAY_PORT")
BUCKETS = "1,8"
"""Few, since each is compiled twice while the test waits."""
DEFAULT_BUCKETS = "1,4,8,32,128"
OVERRIDE = ROOT / "build" / "compose-test" / "override.yml"
REFUSAL_PAUSE_S = 20
REFUSED = "cannot start: "
STORE_READY_TIMEOUT_S = 120.0
WORKER_READY_TIMEOUT_S = 900.0


class ComposeTestError(Exception):
    """The deployment does not do what it should."""


def main() -> int:
    """Run the test; prints each step and what it found."""
    setups = setups_from(sys.argv[1:])
    try:
        engine = find_engine()
        say(f"engine: {engine.name}, compose: {' '.join(engine.compose)}")
        keep_local_torch()
        for image, dockerfile in IMAGES.items():
            say(f"building {image}")
            engine.build(image, ROOT / dockerfile, ROOT)
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        environment = {"MODEL_DIR": str(ensure_model())} | {name: str(port) for name, port in ports.items()}
        for setup in setups:
            say(f"with {setup}")
            with deployment(engine, environment | setup.environment, setup) as compose:
                check_deployment(compose, ports)
        say("with a worker that cannot start")
        refused = Setup("1", max_sequences=2)
        with deployment(engine, environment | refused.environment, refused, only="worker-a") as compose:
            check_refusal(compose)
    except (ComposeTestError, EngineError, subprocess.CalledProcessError) as exc:
        print(f"compose-test: FAILED: {exc}", file=sys.stderr)
        return 1
    say("passed")
    return 0


@dataclass(frozen=True)
class Setup:
    """Settings of the workers that a deployment is brought up with."""

    buckets: str
    variables: dict[str, str] = field(default_factory=dict)
    """Beside hotslot's own."""
    max_sequences: int = 0
    """0 leaves it to the worker: as many as the largest bucket holds, and not more than usual."""

    def __str__(self) -> str:
        return " ".join([f"buckets {self.buckets}", *(f"{name}={value}" for name, value in self.variables.items())])

    @property
    def environment(self) -> dict[str, str]:
        """Environment that the compose file takes."""
        rows = str(self.max_sequences)
        return {"BUCKETS": self.buckets, "MAX_SEQUENCES": rows, "START_PAUSE_S": str(REFUSAL_PAUSE_S)}

    def override(self) -> Path:
        """A compose file that gives the workers the variables."""
        services = {name: {"environment": self.variables} for name in ("worker-a", "worker-b")}
        OVERRIDE.parent.mkdir(parents=True, exist_ok=True)
        OVERRIDE.write_text(json.dumps({"services": services}))  # JSON is YAML.
        return OVERRIDE


def setups_from(arguments: list[str]) -> list[Setup]:
    """Every set of buckets without a mask, then every one with each mask."""
    parser = argparse.ArgumentParser(prog="python -m deploy.compose_test", description=__doc__)
    parser.add_argument("--buckets", action="append", help=f"for example 1,4,8, or default; by default {BUCKETS}")
    parser.add_argument("--mask", action="append", default=[], help="NAME=VALUE,…: variables of the workers")
    found = parser.parse_args(arguments)
    buckets = [DEFAULT_BUCKETS if text == "default" else text for text in found.buckets or [BUCKETS]]
    masks = [dict(part.split("=", 1) for part in mask.split(",")) for mask in found.mask]
    return [Setup(each, mask) for mask in [{}, *masks] for each in buckets]


class Compose:
    """Commands on the running deployment."""

    def __init__(self, engine: ContainerEngine, environment: dict[str, str], setup: Setup) -> None:
        self._engine = engine
        self._environment = environment
        self._files = [ROOT / "docker-compose.yml", *([setup.override()] if setup.variables else [])]

    def __call__(self, *arguments: str, check: bool = True) -> None:
        """Run one compose command."""
        files = [argument for path in self._files for argument in ("-f", str(path))]
        compose = [*self._engine.compose, "-p", PROJECT, *files]
        subprocess.run([*compose, *arguments], env=self._environment, check=check)

    def inside(self, service: str, *command: str) -> str:
        """Run a command in a service's container; what it printed."""
        return self._output("exec", self._container(service), *command)

    def logs(self, service: str) -> str:
        """Everything that a service wrote, over all of its starts."""
        done = subprocess.run(
            [self._engine.name, "logs", self._container(service)],
            env=self._environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        return done.stdout

    def _container(self, service: str) -> str:
        # Not through compose: podman-compose prints what it does among what the command prints.
        labels = {"project": PROJECT, "service": service}
        filters = [f"--filter=label=com.docker.compose.{key}={value}" for key, value in labels.items()]
        return self._output("ps", "--all", "--quiet", *filters)

    def _output(self, *arguments: str) -> str:
        command = [self._engine.name, *arguments]
        return subprocess.run(
            command, env=self._environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout.strip()


@contextmanager
def deployment(engine: ContainerEngine, environment: dict[str, str], setup: Setup, only: str = "") -> Iterator[Compose]:
    """The compose file, up; torn down with its volumes afterwards, with the logs shown when something failed.

    `only` brings up one service and what it needs.
    """
    compose = Compose(engine, os.environ | engine.environment | environment, setup)
    compose("down", "--volumes", check=False)
    try:
        say("starting")
        compose("up", "--detach", "--no-build", *([only] if only else []))
        yield compose
    except BaseException:
        compose("logs", "--tail", "60", check=False)
        raise
    finally:
        say("tearing down")
        compose("down", "--volumes", check=False)


def check_deployment(compose: Compose, ports: dict[str, int]) -> None:
    """Everything that a deployment is for, once."""
    store, *workers, gateway = (f"127.0.0.1:{ports[name]}" for name in PORTS)
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

    # A worker sends a request on to one that has the adapter, unless it has it itself.
    for worker in workers:
        hotslot("load", REFERENCE, "--worker", worker)
    answers = [PrintedAnswer(worker) for worker in workers]
    for answer in answers:
        say(f"{answer.worker_id} served {answer.digests}: {answer.text!r}")
        expect(answer.digests == [digest], f"{answer.worker_id} served {answer.digests}, expected [{digest}]")
    first, second = answers
    expect(first.worker_id != second.worker_id, f"one worker, {first.worker_id}, answered on both ports")
    expect(first.text == second.text, f"the workers disagree: {first.text!r}, {second.text!r}")
    base = PrintedAnswer(workers[0], adapter="")
    say(f"the base model answers: {base.text!r}")
    expect(base.text != first.text, "the adapter changes nothing")
    over_http = asyncio.run(ask_over_http(gateway, PROMPT, REFERENCE))
    say(f"over HTTP: {over_http.text!r}")
    expect(digest in over_http.fingerprint, f"the gateway was served by {over_http.fingerprint}, expected {digest}")

    say("restarting the store")
    compose("restart", "store")
    await_ready("store", store, STORE_READY_TIMEOUT_S)
    names = [adapter["name"] for adapter in hotslot("ls", "--store", store)[0]["adapters"]]
    expect(names == [REFERENCE], f"after a restart the store has {names}, expected [{REFERENCE!r}]")


def check_refusal(compose: Compose) -> None:
    """A worker whose settings do not fit each other says so in its last line, and is not started again at once."""
    deadline_s = time.monotonic() + WORKER_READY_TIMEOUT_S
    while REFUSED not in compose.logs("worker-a"):
        expect(time.monotonic() < deadline_s, "a worker that cannot start does not say why")
        time.sleep(1.0)
    time.sleep(REFUSAL_PAUSE_S / 2)
    reasons = [line for line in compose.logs("worker-a").splitlines() if REFUSED in line]
    say(f"it says: {reasons[0]}")
    expect(len(reasons) == 1, f"it was started {len(reasons)} times within {REFUSAL_PAUSE_S / 2:g} s")
    expect("max_sequences" in reasons[0], f"the reason is not told: {reasons[0]}")


class PrintedAnswer:
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
