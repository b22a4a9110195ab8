"""Commands on a deployment that `hotslot up` runs on this machine: down, logs."""

import time
from collections import deque
from pathlib import Path
from typing import IO, Annotated

import typer

from hotslot.cli.backup_commands import UP_DATA_DIR
from hotslot.cli.detached import end_running, log_paths
from hotslot.cli.options import JsonOption
from hotslot.cli.output import print_document, say

FOLLOW_S = 0.2
DataDirOption = Annotated[
    Path, typer.Option("--data-dir", envvar="HOTSLOT_DATA_DIR", metavar="DIR", help="Data folder of `hotslot up`.")
]


def down(
    data_dir: DataDirOption = UP_DATA_DIR,
    timeout_s: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Longest wait for its end.")] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """End what `hotslot up` runs on this machine; adapters stay.

    JSON: {stopped: its process id, or null when nothing ran}.
    """
    pid = end_running(data_dir.expanduser(), timeout_s)
    if as_json:
        print_document({"stopped": pid})
    elif pid is None:
        say(f"nothing runs on {data_dir}; `hotslot up -d` starts it")
    else:
        print(f"stopped `hotslot up` (process {pid})")


def logs(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Process: up, store, worker-1 or worker for all of them.")
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--tail", "-n", min=0, metavar="N", help="Last N lines of each log.")] = 100,
    data_dir: DataDirOption = UP_DATA_DIR,
) -> None:
    """Show the logs of what `hotslot up` runs, or ran last."""
    paths = log_paths(data_dir.expanduser(), name)
    files = {path.stem: path.open(errors="replace") for path in paths}
    width = max(map(len, files)) if len(files) > 1 else 0
    try:
        for stem, file in files.items():
            for line in deque(file, maxlen=lines):
                _print(stem, line, width)
        while follow:
            found = [_print_new(stem, file, width) for stem, file in files.items()]
            if not any(found):
                time.sleep(FOLLOW_S)
    finally:
        for file in files.values():
            file.close()


def _print_new(stem: str, file: IO[str], width: int) -> bool:
    """Print the whole lines that came since; False where none did."""
    found = False
    while True:
        position = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(position)
            return found
        _print(stem, line, width)
        found = True


def _print(stem: str, line: str, width: int) -> None:
    head = f"{stem:<{width}} | " if width else ""
    print(head + line.rstrip("\n"), flush=True)
