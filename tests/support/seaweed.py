"""A real S3 server, of a wheel, as a process of its own: it can be stopped, killed and started again on its files."""

import json
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from sysconfig import get_path
from typing import Any

import obstore
from obstore.store import S3Store

from hotslot.local.child_processes import free_port

START_S = 120.0
POLL_S = 0.05
PORTS = ("master", "volume", "filer", "s3")


@dataclass(frozen=True)
class S3Identity:
    """Credentials, and what they are for: `Read:BUCKET/PREFIX*`, `Admin` for everything."""

    name: str
    actions: tuple[str, ...] = ("Admin",)

    @property
    def secret(self) -> str:
        return f"secret-of-{self.name}"


ADMIN = S3Identity("admin")


@dataclass
class SeaweedServer:
    """A server's process and files."""

    folder: Path
    identities: tuple[S3Identity, ...]
    ports: Mapping[str, int] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3']}"

    def variables(self, identity: S3Identity = ADMIN) -> dict[str, str]:
        """Environment of a client."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": identity.name,
            "AWS_SECRET_ACCESS_KEY": identity.secret,
            "AWS_REGION": "us-east-1",
        }

    def bucket(self, name: str, identity: S3Identity = ADMIN, *, is_new: bool = True) -> Any:
        """A client of one bucket, which is made where it is new."""
        store = S3Store(
            name,
            endpoint=self.endpoint,
            access_key_id=identity.name,
            secret_access_key=identity.secret,
            region="us-east-1",
            client_options={"allow_http": True},
        )
        if is_new:
            address = obstore.sign(store, "PUT", "", timedelta(minutes=5))
            urllib.request.urlopen(urllib.request.Request(address, method="PUT"), timeout=120).close()
        return store

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "s3.json"
        config.write_text(
            json.dumps(
                {
                    "identities": [
                        {
                            "name": found.name,
                            "credentials": [{"accessKey": found.name, "secretKey": found.secret}],
                            "actions": found.actions,
                        }
                        for found in self.identities
                    ]
                }
            )
        )
        self.ports = self.ports or {name: free_port() for name in (*PORTS, *(f"{name}.grpc" for name in PORTS))}
        named = [
            f"-{name.replace('.grpc', '.port.grpc') if '.' in name else f'{name}.port'}={port}"
            for name, port in self.ports.items()
        ]
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    Path(get_path("scripts")) / "weed",
                    f"-logdir={self.folder}",
                    "server",
                    f"-dir={data}",
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    "-master.telemetry=false",
                    "-master.volumeSizeLimitMB=64",
                    "-volume.max=200",
                    "-filer",
                    "-s3",
                    "-s3.port.iceberg=0",  # has a port of its own, which another server's tests would be in the way of
                    "-s3.port.lance=0",
                    f"-s3.config={config}",
                    *named,
                ],
                stdout=log,
                stderr=log,
            )
        self._wait()

    def stop(self) -> None:
        """End it, and keep its files."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep it from answering until the block ends; its connections stay."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def _wait(self) -> None:
        deadline_s = time.monotonic() + START_S
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.ports["s3"]), 1):
                    pass
                url = f"http://127.0.0.1:{self.ports['master']}/dir/assign"
                with urllib.request.urlopen(url, timeout=5) as response:
                    assigned = json.load(response)
                with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['filer']}/", timeout=5):
                    if "fid" in assigned:
                        return
            except (OSError, urllib.error.URLError, ValueError):
                pass
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "log").read_text(errors="replace")[-4000:]
            assert time.monotonic() < deadline_s, (self.folder / "log").read_text(errors="replace")[-4000:]
            time.sleep(POLL_S)


@contextmanager
def seaweed(folder: Path, *identities: S3Identity) -> Iterator[SeaweedServer]:
    """A server with these identities, and with that of its operator."""
    server = SeaweedServer(folder, (ADMIN, *identities))
    server.start()
    try:
        yield server
    finally:
        server.stop()
