"""Child processes that end with their parent, however that ends, and are known to be ready before they are used."""

import http
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hotslot.endpoints import Endpoint, dialled_endpoint
from hotslot.local.child_processes import tied_to_parent
from hotslot.local.listeners import is_ours, listener
from hotslot.rpc.channel import ChannelOptions, open_blocking_channel
from hotslot.rpc.security import NO_SECURITY, ChannelSecurity

POLL_S = 0.1
PROBE_TIMEOUT_S = 1.0
LOG_TAIL_LINES = 5


class ChildFailedError(Exception):
    """A child ended, or did not become ready in time; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """Program to run as a child process."""

    name: str
    module: str
    """Run as `python -m module`."""
    endpoint: str
    """Endpoint of its gRPC server, with the standard health service."""
    settings: Mapping[str, str]
    """Environment variables on top of our own."""
    log_path: Path
    health_endpoint: str = ""
    """Endpoint of its health service in plaintext, where `endpoint` speaks TLS."""
    health_path: str = ""
    """Path that answers 200 while it serves, where it speaks HTTP instead."""
    security: ChannelSecurity = NO_SECURITY
    """Certificates by which its health is asked for."""
    without: frozenset[str] = frozenset()
    """Variables of our environment that it does not get."""


class Child:
    """A running child process, leader of its own process group.

    Start it in a thread that outlives it: the kernel ties it to the thread that started it.
    """

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.started_s = time.monotonic()
        self._log: IO[bytes] = spec.log_path.open("ab")
        self._process = subprocess.Popen(
            tied_to_parent([sys.executable, "-m", spec.module]),
            env={**{k: v for k, v in os.environ.items() if k not in spec.without}, **spec.settings},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            # A Ctrl-C in the terminal is for us, who end the children in order.
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Its process id, which is its group's as well."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._process.poll()

    def is_ready(self) -> bool:
        """Tell whether its health service says that it serves."""
        if self.spec.health_path:
            return _answers(self.spec.endpoint, self.spec.health_path)
        # The channel must not retry or wait: the next poll comes soon.
        endpoint, security = self.spec.endpoint, self.spec.security
        if self.spec.health_endpoint:
            endpoint, security = self.spec.health_endpoint, NO_SECURITY
        with open_blocking_channel(endpoint, ChannelOptions(max_attempts=1, security=security)) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # its type stub has no methods
            try:
                response = stub.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_TIMEOUT_S)
            except grpc.RpcError:
                return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    def wait_ready(self, timeout_s: float, on_wait: Callable[[], None] = lambda: None) -> None:
        """Return when it serves, with `on_wait` called meanwhile.

        Raises ChildFailedError when it ends or takes longer, and where another process answers in its place.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self.is_ready():
            if self.exit_code() is not None:
                raise ChildFailedError(self.failure())
            if time.monotonic() > deadline_s:
                raise ChildFailedError(f"{self.spec.name} is not ready after {timeout_s:g} s{self._log_tail()}")
            on_wait()
            time.sleep(POLL_S)
        self._check_who_answers()

    def _check_who_answers(self) -> None:
        endpoint = dialled_endpoint(self.spec.endpoint)
        if not isinstance(endpoint, Endpoint):
            return
        by = listener(endpoint.port)
        if by is not None and not is_ours(by, self.pid):
            answered = f"port {endpoint.port} is answered by {by} rather than by {self.spec.name}"
            raise ChildFailedError(f"{answered}; choose another port")

    def failure(self) -> str:
        """End of the process in words, with the end of its log."""
        return f"{self.spec.name} ended with {self.exit_code()}{self._log_tail()}"

    def _log_tail(self) -> str:
        lines = self.spec.log_path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return f"; the end of {self.spec.log_path}:" + "".join(f"\n  {line}" for line in lines)

    def terminate(self) -> None:
        """Ask it to end in order."""
        if self.exit_code() is None:
            self._process.send_signal(signal.SIGTERM)

    def finish(self, grace_s: float) -> None:
        """Wait for its end, and after the grace force it on the whole group."""
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()

    def kill(self) -> None:
        """End it and whatever it started, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()


def _answers(endpoint: str, path: str) -> bool:
    connection = http.client.HTTPConnection(endpoint, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def stop_all(children: Sequence[Child], grace_s: float) -> None:
    """End children in order, the last one started first; force what is left after the grace."""
    deadline_s = time.monotonic() + grace_s
    try:
        for child in reversed(children):
            child.terminate()
        for child in reversed(children):
            child.finish(max(0.0, deadline_s - time.monotonic()))
    finally:
        # Also when a second Ctrl-C interrupts the waiting.
        for child in children:
            child.kill()
