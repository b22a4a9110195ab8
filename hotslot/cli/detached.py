"""A deployment of `hotslot up` that another command ends: its file of the process id, which is locked while it runs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hotslot.errors import InvalidRequestError, PreconditionError
from hotslot.file_lock import try_lock

PID_FILE = "up.pid"
LOG_FILE = Path("logs", "up.log")
READY = "hotslot is up"
POLL_S = 0.1
PROBES_S = 0.5


@contextmanager
def running_here(data_dir: Path) -> Iterator[None]:
    """Hold the data folder of one `up`; raises PreconditionError while another one has it."""
    with (data_dir / PID_FILE).open("a+") as file:
        deadline_s = time.monotonic() + PROBES_S
        while not try_lock(file.fileno()):  # Someone may only be asking whether it is locked.
            if time.monotonic() > deadline_s:
                raise _running_already(data_dir, file)
            time.sleep(POLL_S)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def running_pid(data_dir: Path) -> int | None:
    """Process id of the `up` that has the data folder; None where none runs."""
    try:
        with (data_dir / PID_FILE).open("r+") as file:
            return None if try_lock(file.fileno()) else int(file.read() or 0) or None
    except FileNotFoundError:
        return None


def start_detached(
    arguments: Sequence[str],
    data_dir: Path,
    timeout_s: float,
    on_line: Callable[[str], None] = lambda line: None,
    *,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Start `hotslot up` in the background; returns its process id and what it printed once it was ready.

    `environment` takes the place of our own, with what must not stand among the arguments; `on_line` hears each line
    that it prints before. Ctrl-C meanwhile ends it.
    """
    with (data_dir / PID_FILE).open("a+") as file:
        if not try_lock(file.fileno()):
            raise _running_already(data_dir, file)
    log_path = data_dir / LOG_FILE
    with log_path.open("ab") as log:
        begin = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "hotslot", "up", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline_s = time.monotonic() + timeout_s
    told = 0
    try:
        while time.monotonic() < deadline_s:
            has_ended = process.poll() is not None
            with log_path.open("rb") as written:
                written.seek(begin)
                printed = written.read().decode(errors="replace")
            before, found, ready = printed.partition(READY)
            if found and running_pid(data_dir) == process.pid:
                return process.pid, found + ready
            if has_ended:
                why = last_words(printed) or str(log_path)
                raise PreconditionError(f"`hotslot up` ended with {process.returncode}: {why}", "up")
            lines = before.split("\n")[:-1]
            for line in lines[told:]:
                on_line(line)
            told = max(told, len(lines))
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        raise
    process.send_signal(signal.SIGTERM)
    raise PreconditionError(
        f"`hotslot up` is not ready after {timeout_s:g} s and was ended; {log_path} says more", "up"
    )


def last_words(printed: str) -> str:
    """Last error that `hotslot up` printed, in all of its lines; all that it printed where that is none."""
    lines = printed.strip().split("\n")
    begins = [index for index, line in enumerate(lines) if line.startswith("hotslot: ")]
    return "\n".join(lines[begins[-1] :] if begins else lines).removeprefix("hotslot: ")


def end_running(data_dir: Path, timeout_s: float) -> int | None:
    """End the `up` that has the data folder, and wait for its end; returns its process id, None where none runs."""
    pid = running_pid(data_dir)
    if pid is None:
        return None
    os.kill(pid, signal.SIGTERM)
    deadline_s = time.monotonic() + timeout_s
    while running_pid(data_dir) == pid:
        if time.monotonic() > deadline_s:
            raise PreconditionError(
                f"`hotslot up` (process {pid}) still runs after {timeout_s:g} s; look at its log", "up"
            )
        time.sleep(POLL_S)
    return pid


def log_paths(data_dir: Path, name: str) -> list[Path]:
    """Logs of all processes, of one, or of all workers for `worker`; raises InvalidRequestError where there is none."""
    known = {path.stem: path for path in sorted((data_dir / "logs").glob("*.log"))}
    found = [path for stem, path in known.items() if name in ("", stem) or stem.startswith(f"{name}-")]
    if not found:
        there = f"there are {', '.join(known)}" if known else f"there is none in {data_dir / 'logs'}"
        raise InvalidRequestError(
            [], f"no log{f' of {name!r}' if name else ''}: {there}; --data-dir names another folder"
        )
    return found


def _running_already(data_dir: Path, file: IO[str]) -> PreconditionError:
    file.seek(0)
    pid = file.read().strip()
    return PreconditionError(f"a `hotslot up` (process {pid}) has {data_dir} already; `hotslot down` ends it", "up")
