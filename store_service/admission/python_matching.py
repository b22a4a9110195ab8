"""Matches expressions that only Python's engine takes, in a helper process that can be ended; started when needed."""

import json
import os
import selectors
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

from store_service.admission import pattern_process

MATCH_CPU_S = 0.25
"""Processor time of one match; those of real configs take microseconds."""
MATCH_WALL_S = 20.0
"""For a machine so busy that the helper gets no processor time."""
EXPRESSION_CPU_S = 0.5
"""Processor time of all matches of one expression."""
MAX_ANSWER_BYTES = 4096


class UnboundedMatchError(ValueError):
    """A match that took too long, or that Python's engine does not take."""


class PythonMatcher:
    """One expression, matched elsewhere; remembers what was asked before."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._used_s = 0.0
        self._known: dict[tuple[str, bool], bool] = {}

    def matches(self, path: str, *, whole: bool) -> bool:
        """As PEFT matches it; raises UnboundedMatchError."""
        key = (path, whole)
        if key not in self._known:
            if self._used_s > EXPRESSION_CPU_S:
                raise UnboundedMatchError(f"its matches took more than {EXPRESSION_CPU_S} s of processor time")
            is_match, used_s = _helper(os.getpid()).match(self._text, path, whole)
            self._used_s += used_s
            self._known[key] = is_match
        return self._known[key]


class _Helper:
    """The process, and whose turn it is: threads that admit checkpoints share it."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def match(self, text: str, path: str, whole: bool) -> tuple[bool, float]:
        question = json.dumps([text, path, whole, MATCH_CPU_S]).encode() + b"\n"
        with self._turn:
            process = self._running()
            answer = self._ask(process, question)
            if answer is None:
                self._process = None
                process.kill()
                process.wait()
                raise UnboundedMatchError(f"a match took more than {MATCH_CPU_S} s of processor time")
        if len(answer) == 1:
            raise UnboundedMatchError(str(answer[0]))
        is_match, used_s = answer
        return bool(is_match), float(used_s)

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            # It ends by itself when our end of its input closes, however this process ends.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(pattern_process.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
                start_new_session=True,
            )
        return self._process

    def _ask(self, process: "subprocess.Popen[bytes]", question: bytes) -> "list[bool | float | str] | None":
        """None where the process has ended over the question, or would have to be."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(question)
            process.stdin.flush()
        except BrokenPipeError:
            return None
        line = b""
        deadline_s = time.monotonic() + MATCH_WALL_S
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(deadline_s - time.monotonic()) or len(line) > MAX_ANSWER_BYTES:
                    return None
                data = os.read(process.stdout.fileno(), MAX_ANSWER_BYTES)
                if not data:
                    return None
                line += data
        answer: list[bool | float | str] = json.loads(line)
        return answer


@cache
def _helper(process_id: int) -> _Helper:
    """One for each process of ours: a fork must not share its parent's pipes."""
    return _Helper()
