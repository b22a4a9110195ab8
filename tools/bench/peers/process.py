"""A peer's process, from the benchmark's side."""

import json
import os
import selectors
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tools.bench.peers.protocol import PeerSettings, PromptRow, TimedAnswer

ROOT = Path(__file__).resolve().parents[3]
ENDS_WITHIN_S = 30.0
LOG_TAIL_CHARACTERS = 1500


class PeerFailedError(RuntimeError):
    """A peer ended, or did not answer in time; the message holds the end of its log."""


class PeerProcess:
    """One peer, started and waiting; use it with `with`.

    While other peers are measured it sleeps in a read of its standard input.
    """

    def __init__(self, name: str, module: str, python: str, settings: PeerSettings, log_path: Path) -> None:
        self.name = name
        self._log_path = log_path
        log_path.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(settings.threads)}
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [python, "-P", "-m", module],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._began_s = time.perf_counter()
        self._say(asdict(settings))
        self.versions: dict[str, str] = {}
        self.started_s = 0.0

    def wait_ready(self, timeout_s: float) -> Self:
        """Wait until it can be asked; raises PeerFailedError."""
        self.versions = self._hear(timeout_s)["versions"]
        self.started_s = time.perf_counter() - self._began_s
        return self

    def generate(self, rows: list[PromptRow], num_tokens: int, timeout_s: float) -> TimedAnswer:
        """Have all rows answered; raises PeerFailedError."""
        self._say({"rows": [asdict(row) for row in rows], "num_tokens": num_tokens})
        return TimedAnswer(**self._hear(timeout_s))

    def _say(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as exc:
            raise self._failed("ended") from exc

    def _hear(self, timeout_s: float) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                # It would answer one question late from then on.
                self._process.kill()
                raise self._failed(f"did not answer within {timeout_s:g} s")
        line = stdout.readline()
        if not line:
            raise self._failed("ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def _failed(self, problem: str) -> PeerFailedError:
        tail = self._log_path.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL_CHARACTERS:]
        return PeerFailedError(f"{self.name} {problem}; the end of {self._log_path}:\n{tail}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(ENDS_WITHIN_S)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()


def own_python() -> str:
    """Interpreter of this process, for peers that need no environment of their own."""
    return sys.executable
