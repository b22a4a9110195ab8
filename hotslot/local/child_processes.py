"""Starting child processes: tied to their parent's life, on ports that are free."""

import errno
import os
import random
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# Below are the well-known ports of databases, web servers and the like.
FIRST_PORT = 12_000
# RFC 6335, section 6: from here on, systems other than Linux give ports to outgoing connections.
IANA_FIRST_DYNAMIC_PORT = 49_152

# Runs between fork and the program: asks the kernel to kill it when we die (Linux; elsewhere only an orderly end is
# covered), then becomes the program. A preexec_fn would do the same, but is unsafe beside grpc's threads.
_EXEC_TIED_TO_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def tied_to_parent(command: Sequence[str]) -> list[str]:
    """The command line that runs `command`, whose first word is a path, so that it ends with this process.

    Start it in a thread that outlives it: the kernel ties it to the thread that started it.
    """
    return [sys.executable, "-I", "-S", "-c", _EXEC_TIED_TO_PARENT, str(os.getpid()), *command]


def free_port() -> int:
    """A TCP port of the loopback that nothing listens on now, and that no outgoing connection is given meanwhile."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Several such ports, each another."""
    free: list[int] = []
    candidates = _ports_for_servers()
    for port in random.sample(candidates, len(candidates)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            free.append(port)
        if len(free) == count:
            return free
    raise OSError(errno.EADDRINUSE, f"fewer than {count} ports of the loopback are free")


def _ports_for_servers() -> Sequence[int]:
    """Ports that the kernel gives to no process by itself.

    One of those that it gives to outgoing connections may be gone before its server starts or restarts; and who calls
    such a port of the loopback again and again while nothing listens there, may at last be connected to itself.
    """
    try:
        first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        first_outgoing = IANA_FIRST_DYNAMIC_PORT
    return range(FIRST_PORT, max(first_outgoing, FIRST_PORT + 1000))
