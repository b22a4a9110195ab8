"""Starting child processes: tied to their parent's life, on ports that are free."""

import os
import socket
import sys
from collections.abc import Sequence

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
    """A TCP port of the loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
