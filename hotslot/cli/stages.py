"""Stages of a start on standard error: a line that counts seconds on a terminal, and one line a stage elsewhere."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from hotslot.cli.output import say

FIRST_START = "the first start compiles, which takes a minute or more; later ones take seconds"
WORKER_STAGES = {
    "fetch": "finding the model's files",
    "cache": "looking for compiled code",
    "load": "loading the weights",
    "expect": "computing what plain transformers answers",
    "kernels": "building native kernels",
    "adapt": "adding slots",
    "bind": "taking over what an earlier start recorded",
    "compile": "compiling",
    "record": "recording steps",
    "note": "noting steps",
    "self_test": "comparing answers",
    "capture": "capturing steps",
}
"""Stages of a worker's start, as its log names them; which of them there are depends on device and earlier starts."""
LAST_STAGE = "joining the fleet"
SLOW_STAGES = ("fetch", "kernels", "compile")
"""Stages at which a first start says how long it takes: the first one, and those that take the time."""
_BEGUN = re.compile(r"startup_stage_begun\b.*\bstage\W{1,4}(\w+)")
_LAST_ENDED = re.compile(r"startup_stage\b.*\bstage\W{1,4}(?:self_test|capture)\b")


class Stages:
    """The stages of one start, and the time since it began."""

    def __init__(self, *, quiet: bool = False) -> None:
        """`quiet` says nothing at all."""
        self._console = Console(stderr=True)
        self._quiet = quiet
        self._is_live = self._console.is_terminal and not quiet
        self._began_s = time.monotonic()
        self._shown = ElapsedText(self._began_s)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the current stage for as long as the block; nothing of it stays behind."""
        if not self._is_live:
            yield
            return
        with Live(Spinner("dots", self._shown), console=self._console, refresh_per_second=8, transient=True):
            yield

    def enter(self, text: str, expect: str = "") -> None:
        """Begin a stage; `expect` is how long it may take."""
        self._shown.text, self._shown.expect = text, expect
        if not self._is_live and not self._quiet:
            say(f"hotslot: [{time.monotonic() - self._began_s:4.0f} s] {text}{f'; {expect}' if expect else ''}")

    def say(self, text: str) -> None:
        """A line that stays, above the stage that goes on."""
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class ElapsedText:
    """Text of a stage with the seconds so far, made anew each time that it is drawn."""

    def __init__(self, began_s: float) -> None:
        self._began_s = began_s
        self.text = self.expect = ""

    def __rich__(self) -> Text:
        elapsed = f"{self.text} · {time.monotonic() - self._began_s:.0f} s"
        return Text(elapsed + (f" · {self.expect}" if self.expect else ""))


class WorkerStages:
    """Stages of workers that start, read from the logs that they write."""

    def __init__(self, stages: Stages, logs: Sequence[tuple[str, Path, int]], *, is_first: bool) -> None:
        """`logs` are names, paths and the size before the start; `is_first` where no compiled code is there."""
        self._stages = stages
        self._files: list[tuple[str, IO[str]]] = []
        self._current: dict[str, str] = {}
        self._expect = FIRST_START if is_first else ""
        for name, path, begin in logs:
            file = path.open(errors="replace")
            file.seek(begin)
            self._files.append((name, file))
            self._enter(name, next(iter(WORKER_STAGES)))

    def look(self) -> None:
        """Read what the logs have had since, and enter the stages that they tell of."""
        for name, file in self._files:
            for line in iter(file.readline, ""):
                if (begun := _BEGUN.search(_plain(line))) and begun[1] in WORKER_STAGES:
                    self._enter(name, begun[1])
                elif _LAST_ENDED.search(_plain(line)):
                    self._enter(name, "")

    def close(self) -> None:
        """Close the logs."""
        for _, file in self._files:
            file.close()

    def _enter(self, name: str, stage: str) -> None:
        if self._current.get(name) == stage:
            return
        self._current[name] = stage
        expect = self._expect if stage in SLOW_STAGES else ""
        self._stages.enter(f"{name}: {WORKER_STAGES.get(stage, LAST_STAGE)}", expect)


def _plain(line: str) -> str:
    """A log's line without the colours that a console's format has."""
    return re.sub(r"\x1b\[[0-9;]*m", "", line)
