"""Processes that listen on ports of this machine, as Linux tells them; elsewhere nothing is known."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"
"""State of a listening socket in /proc/net/tcp."""
MAX_COMMAND_LENGTH = 60


@dataclass(frozen=True, slots=True)
class Listener:
    """A process that listens on a port."""

    pid: int
    command: str
    parent: int

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})"


def listener(port: int) -> Listener | None:
    """The process that listens on a TCP port here; None where there is none, or it is not ours to see."""
    inodes = set(_listening_inodes(port))
    return next(_holders(inodes), None) if inodes else None


def is_ours(found: Listener, pid: int) -> bool:
    """Tell if a listener is that process or a child of it."""
    return pid in (found.pid, found.parent)


def _listening_inodes(port: int) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path("/proc/net", name).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _holders(inodes: set[str]) -> Iterator[Listener]:
    sockets = {f"socket:[{inode}]" for inode in inodes}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # It has ended, or belongs to another user.
            if any(_target(entry) in sockets for entry in (folder / "fd").iterdir()):
                yield _described(folder)


def _target(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except OSError:
        return ""


def _described(folder: Path) -> Listener:
    words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    words[0] = words[0].rpartition("/")[2]
    command = " ".join(word for word in words if word)
    if len(command) > MAX_COMMAND_LENGTH:
        command = command[: MAX_COMMAND_LENGTH - 1] + "…"
    parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    return Listener(int(folder.name), command, parent)
