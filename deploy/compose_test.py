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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from deploy.compose_calls import (
    CA_FILE,
    PROMPT,
    REFERENCE,
    TOKEN_FILE,
    ComposeTestError,
    PrintedAnswer,
    await_ready,
    expect,
    expect_no_stranger,
    hotslot,
    say,
)
from deploy.compose_fleet import check_fleet
from deploy.container_engine import ContainerEngine, EngineError, find_engine
from deploy.demo.http_request import ask_over_http
from hotslot.local.child_processes import free_ports
from worker_service.demo_model import BASE_MODEL, ensure_model

ROOT = Path(__file__).resolve().parent.parent
ADAPTER = Path(__file__).parent / "demo" / "adapters" / "pirate"
WHEELS = ROOT / "build" / "wheels"
PROJECT = "hotslot-test"
IMAGES = {"hotslot-store:dev": "deploy/store.Dockerfile", "hotslot-worker:dev": "deploy/worker.Dockerfile"}
PORTS = ("STORE_PORT", "WORKER_A_PORT", "WORKER_B_PORT", "GATEWAY_PORT")
FLEET_PORTS = ("STORE_B_PORT", "PROMETHEUS_PORT")
BUCKETS = "1,8"
"""Few, since each is compiled twice while the test waits."""
DEFAULT_BUCKETS = "1,4,8,32,128"
FLEET = ROOT / "docker-compose.fleet.yml"
OVERRIDE = ROOT / "build" / "compose-test" / "override.yml"
REFUSAL_PAUSE_S = 20
REFUSED = "cannot start: "
STORE_READY_TIMEOUT_S = 120.0
WORKER_READY_TIMEOUT_S = 900.0


def main() -> int:
    """Run the test; prints each step and what it found."""
    setups, with_fleet = setups_from(sys.argv[1:])
    try:
        engine = find_engine()
        say(f"engine: {engine.name}, compose: {' '.join(engine.compose)}")
        arguments = {"LOCK": local_lock()}
        keep_local_torch()
        for image, dockerfile in IMAGES.items():
            say(f"building {image}")
            engine.build(image, ROOT / dockerfile, ROOT, arguments if "worker" in image else {})
        names = (*PORTS, *FLEET_PORTS)
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        environment = {"MODEL_DIR": str(ensure_model())} | {name: str(port) for name, port in ports.items()}
        for setup in setups:
            say(f"with {setup}")
            with deployment(engine, environment | setup.environment, setup) as compose:
                check_deployment(compose, ports)
        if with_fleet:
            say("with two stores and Prometheus")
            fleet = Setup(BUCKETS, is_fleet=True)
            with deployment(engine, environment | fleet.environment, fleet) as compose:
                trust(compose)
                check_fleet(compose, ports)
            say("passed, without what other set-ups have")
            return 0
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
    is_fleet: bool = False
    """Two stores, their data and Prometheus beside the rest: docker-compose.fleet.yml."""

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


def setups_from(arguments: list[str]) -> tuple[list[Setup], bool]:
    """Every set of buckets without a mask, then every one with each mask; or none, and the fleet alone."""
    parser = argparse.ArgumentParser(prog="python -m deploy.compose_test", description=__doc__)
    parser.add_argument("--buckets", action="append", help=f"for example 1,4,8, or default; by default {BUCKETS}")
    parser.add_argument("--mask", action="append", default=[], help="NAME=VALUE,…: variables of the workers")
    parser.add_argument("--fleet", action="store_true", help="two stores and Prometheus, and nothing else")
    found = parser.parse_args(arguments)
    if found.fleet:
        return [], True
    buckets = [DEFAULT_BUCKETS if text == "default" else text for text in found.buckets or [BUCKETS]]
    masks = [dict(part.split("=", 1) for part in mask.split(",")) for mask in found.mask]
    return [Setup(each, mask) for mask in [{}, *masks] for each in buckets], False


class Compose:
    """Commands on the running deployment."""

    def __init__(self, engine: ContainerEngine, environment: dict[str, str], setup: Setup) -> None:
        self._engine = engine
        self._environment = environment
        self._files = [ROOT / "docker-compose.yml", *([FLEET] if setup.is_fleet else [])]
        self._files += [setup.override()] if setup.variables else []

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
    trust(compose)
    await_ready("store", store, STORE_READY_TIMEOUT_S)
    for worker in workers:
        await_ready("worker", worker, WORKER_READY_TIMEOUT_S)

    for service in ("store", "worker-a", "worker-b"):
        user = compose.inside(service, "id", "-u")
        expect(user == "10001", f"{service} runs as user {user}, expected 10001")
        compose.inside(service, "python", "/opt/hotslot/bin/hotslot-health.py")
        others = compose.inside(service, "ls", "/credentials").split()
        secret = {"ca.key", "user.token", "postgres-password"} & set(others)
        expect(not secret, f"{service} has what is none of its business: {secret}")
    keyed = compose.inside("redis", "valkey-cli", "--tls", "--cacert", "/credentials/ca.crt", "get", "x")
    expect("NOAUTH" in keyed, f"Redis answers callers without a password: {keyed}")
    bill = json.loads(compose.inside("store", "cat", "/opt/hotslot/sbom.cdx.json"))
    expect(bill["bomFormat"] == "CycloneDX", "the store's image has no bill of materials")
    say(f"the store's image names {len(bill['components'])} components")
    found = compose.inside("store", "python", "-c", "import importlib.util as u; print(u.find_spec('torch'))")
    expect(found == "None", f"the store's image has torch: {found}")

    fleet = hotslot("workers", "--store", store)[0]["workers"]
    expect(len(fleet) == len(workers), f"the store knows {len(fleet)} workers, expected {len(workers)}: {fleet}")

    expect_no_stranger(store, workers[0])
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


def trust(compose: Compose) -> None:
    """Take the deployment's authority, and its user's token, once there are any."""
    deadline_s = time.monotonic() + STORE_READY_TIMEOUT_S
    CA_FILE.parent.mkdir(parents=True, exist_ok=True)
    for name, file, begins in (("ca.crt", CA_FILE, "-----BEGIN"), ("user.token", TOKEN_FILE, "hs1_")):
        text = ""
        while not text.startswith(begins):
            expect(time.monotonic() < deadline_s, f"the deployment has no {name}")
            time.sleep(1.0)
            with suppress(subprocess.CalledProcessError):
                text = compose.inside("credentials", "cat", f"/credentials/authority/{name}")
        file.touch(0o600)
        file.write_text(text + "\n")


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


def local_lock() -> str:
    """Lock of the worker's image, with the same kind of torch as .venv."""
    return "worker-cpu.lock" if version("torch").endswith("+cpu") else "worker.lock"


def keep_local_torch() -> None:
    """Give the image the same build of torch as .venv, when that is one that pip would not choose by itself."""
    installed = version("torch")
    if "+" not in installed or list(WHEELS.glob(f"torch-{installed}-*.whl")):
        return
    say(f"fetching the wheel of torch {installed} for the image")
    shutil.rmtree(WHEELS, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(WHEELS)]
    subprocess.run([*pip, f"torch=={installed}"], check=True)


if __name__ == "__main__":
    sys.exit(main())
