"""Calls to a composed deployment, as its users make them: by the command, over TLS, with a token."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from deploy.healthcheck import ask

ROOT = Path(__file__).resolve().parent.parent
CA_FILE = ROOT / "build" / "compose-test" / "ca.crt"
"""Authority of the deployment under test, which its callers trust."""
TOKEN_FILE = CA_FILE.with_name("user.token")
"""Token of its user."""
REFERENCE = "demo/pirate"
PROMPT = "What is the capital of France?"


class ComposeTestError(Exception):
    """The deployment does not do what it should."""


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
    environment = os.environ | {"HOTSLOT_TLS_CA_FILE": str(CA_FILE), "HOTSLOT_TOKEN_FILE": str(TOKEN_FILE)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
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


def expect_no_stranger(store: str, worker: str) -> None:
    """Raise ComposeTestError where a store or a worker answers a caller without a token."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOTSLOT_TOKEN")}
    environment["HOTSLOT_TLS_CA_FILE"] = str(CA_FILE)
    for arguments in (["ls", "--store", store], ["generate", "--base-only", "hello", "--worker", worker]):
        command = [str(Path(sys.executable).with_name("hotslot")), *arguments, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        told = done.stdout + done.stderr
        expect(done.returncode != 0 and "UNAUTHENTICATED" in told, f"a stranger hears of {arguments[0]}: {told}")


def await_ready(name: str, address: str, timeout_s: float) -> None:
    """Ask over gRPC until the service says that it is ready."""
    started = time.monotonic()
    status = ""
    while (waited_s := time.monotonic() - started) < timeout_s:
        status = ask(address, "readiness", CA_FILE)
        if status == "SERVING":
            say(f"{name} at {address} is ready after {waited_s:.0f} s")
            return
        time.sleep(1.0)
    raise ComposeTestError(f"{name} at {address} is not ready after {timeout_s:.0f} s: {status}")


def expect(holds: bool, failure: str) -> None:
    """Raise ComposeTestError unless it holds."""
    if not holds:
        raise ComposeTestError(failure)


def say(text: str) -> None:
    """One line of progress."""
    print(f"compose-test: {text}", flush=True)
