"""Stores as processes of their own, for tests that kill or measure them."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hotslot.local.child_processes import free_port
from tests.support.stack import is_running
from tests.support.store import StoreClient, dial
from tests.support.waiting import until


@dataclass(frozen=True)
class StoreProcess:
    """A store that serves."""

    pid: int
    port: int
    log_path: Path

    def client(self) -> "AbstractAsyncContextManager[StoreClient]":
        return dial(f"127.0.0.1:{self.port}")

    async def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        await until(lambda: not is_running(self.pid))


class StoreForks:
    """Starts stores in a fraction of the time that Python needs to import one."""

    def __init__(self, parent: "subprocess.Popen[str]") -> None:
        self._parent = parent

    @asynccontextmanager
    async def store(self, folder: Path, **settings: object) -> AsyncIterator[StoreProcess]:
        """A store on `folder/data`, killed when the block is left; what it logs is in `folder/store.log`."""
        port = free_port()
        chosen = {"listen": f"127.0.0.1:{port}", "data_dir": folder / "data", "log_level": "warning", **settings}
        environment = {f"HOTSLOT_{name.upper()}": str(value) for name, value in chosen.items()}
        log_path = folder / "store.log"
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps({**environment, "LOG_PATH": str(log_path)}) + "\n")
        self._parent.stdin.flush()
        process = StoreProcess(int(self._parent.stdout.readline()), port, log_path)
        try:
            await until(lambda: _listens(port) or not is_running(process.pid))
            assert is_running(process.pid), log_path.read_text()
            yield process
        finally:
            if is_running(process.pid):
                await process.kill()


@contextmanager
def store_forks() -> Iterator[StoreForks]:
    """The process that stores are forked from; they end with it."""
    command = [sys.executable, "-m", "tests.support.store_forks"]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield StoreForks(parent)
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
