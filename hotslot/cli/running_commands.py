"""Commands on a deployment that `hotslot up` runs on this machine: down, renew, logs."""

import io
import time
from collections import deque
from pathlib import Path
from typing import IO, Annotated

import typer

from hotslot.cli.backup_commands import UP_DATA_DIR
from hotslot.cli.detached import end_running, log_paths, running_pid
from hotslot.cli.interrupts import interruptible_pauses
from hotslot.cli.options import JsonOption
from hotslot.cli.output import print_document, say
from hotslot.content_files import PRIVATE, write_file
from hotslot.errors import PreconditionError
from hotslot.local.identity_files import Renewal, identity_files

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


def renew(
    authority: Annotated[
        bool, typer.Option("--authority", help="A new authority too, after which the one before is trusted no longer.")
    ] = False,
    data_dir: DataDirOption = UP_DATA_DIR,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="Longest wait until it is done.")
    ] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Give what `hotslot up` runs new certificates, while it runs and without failed calls.

    They are renewed before their end anyway; this is for keys that may have leaked. JSON: {renewed: "certificates" or
    "authority", at_next_start}.
    """
    files = identity_files(data_dir.expanduser())
    if not files.trusted_file.exists():
        raise PreconditionError(f"there are no certificates in {files.folder}; `hotslot up` makes them", "renew")
    what = Renewal.AUTHORITY if authority else Renewal.CERTIFICATES
    write_file(files.request_file, io.BytesIO(f"{what}\n".encode()), mode=PRIVATE)
    runs = running_pid(data_dir.expanduser()) is not None
    deadline_s = time.monotonic() + timeout_s
    while runs and files.request_file.exists():
        if time.monotonic() > deadline_s:
            problem = f"`hotslot up` has not renewed its {what} after {timeout_s:g} s"
            raise PreconditionError(f"{problem}; see `hotslot logs up`, and whether it runs --insecure", "renew")
        time.sleep(FOLLOW_S)
    if as_json:
        print_document({"renewed": what.value, "at_next_start": not runs})
    else:
        print(f"the {what} {'is' if authority else 'are'} renewed{'' if runs else ' at the next `hotslot up`'}")


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
        with interruptible_pauses() as pause:
            while follow:
                found = [_print_new(stem, file, width) for stem, file in files.items()]
                pause(0.0 if any(found) else FOLLOW_S)
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
