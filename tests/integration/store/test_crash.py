"""SIGKILL at random moments: what was acknowledged is there after a restart, and nothing else is."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shared.child_processes import free_port
from shared.errors import HotslotError
from shared.ids import DEFAULT_TENANT, Digest, TenantId, digest_of
from shared.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from store_service.app import SQLITE_FILE
from store_service.catalog.database import open_database
from store_service.catalog.sql import SqlCatalog
from tests.support.checkpoints import adapter, base_spec
from tests.support.store import StoreClient, dial, error_of
from tests.support.waiting import until

SPEC = base_spec()


@dataclass
class Acknowledged:
    """What the store has said yes to; a call in flight may or may not have happened."""

    tags: dict[str, set[str]] = field(default_factory=dict)
    """Adapter to the digests that its tag may point at: the acknowledged one, and any in flight since."""
    deleted: dict[str, bool | None] = field(default_factory=dict)
    """Whether an adapter is deleted; None while a deletion was in flight."""
    weights: dict[str, str] = field(default_factory=dict)


class Store:
    """A store process that can be killed and started again on the same port and folder."""

    def __init__(self, folder: Path) -> None:
        self._port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> "Store":
        environment = {
            **os.environ,
            "HOTSLOT_LISTEN": f"127.0.0.1:{self._port}",
            "HOTSLOT_DATA_DIR": str(self._folder / "data"),
            "HOTSLOT_IMPORT_ROOTS": str(self._folder / "imports"),
            "HOTSLOT_LOG_LEVEL": "warning",
        }
        self._process = subprocess.Popen([sys.executable, "-m", "store_service"], env=environment)  # noqa: ASYNC220
        await until(self._listens, timeout_s=60)
        return self

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    async def __aexit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def client(self) -> "contextlib.AbstractAsyncContextManager[StoreClient]":
        return dial(f"127.0.0.1:{self._port}")


async def work(client: StoreClient, known: Acknowledged, rng: random.Random, imports: Path) -> None:
    """Pushes, imports, tag moves and deletions until the store is gone."""
    for _ in range(10_000):
        name = f"bot-{rng.randrange(6)}"
        draft = adapter(seed=rng.randrange(10_000))
        match rng.randrange(4):
            case 0 | 1:
                files = await client.upload(draft)
                validated = await client.call("ValidateAdapter", pb.ValidateAdapterRequest(files=files))
                known.tags.setdefault(name, set()).add(validated.digest)
                response = await client.call("CreateVersion", pb.CreateVersionRequest(reference=name, files=files))
                acknowledge(known, name, response.version)
            case 2:
                folder = imports / f"{rng.randrange(10**9)}"
                draft.write(folder)
                files = await client.upload(draft)
                validated = await client.call("ValidateAdapter", pb.ValidateAdapterRequest(files=files))
                known.tags.setdefault(name, set()).add(validated.digest)
                request = pb.ImportAdapterRequest(reference=name, directory=pb.DirectorySource(path=str(folder)))
                acknowledge(known, name, (await client.stream("ImportAdapter", request))[-1].version)
            case 3 if known.deleted.get(name) is False:
                known.deleted[name] = None
                await client.call("DeleteAdapter", pb.DeleteAdapterRequest(name=name))
                known.deleted[name] = True
                known.tags[name] = set()


def acknowledge(known: Acknowledged, name: str, version: pb.Version) -> None:
    known.tags[name] = {version.digest}
    known.deleted[name] = False
    known.weights[version.digest] = version.manifest.weights_digest


async def check(client: StoreClient, known: Acknowledged, folder: Path) -> None:
    """Everything acknowledged is there and whole; nothing is there that nobody asked for."""
    names = await client.names()
    for name in names:
        version = await client.resolve(name)
        assert version.digest in known.tags[name], f"{name} points at what nobody pushed"
        acknowledge(known, name, version)
        assert digest_of(await client.read(version.manifest.weights_digest)) == version.manifest.weights_digest
    for name, deleted in known.deleted.items():
        if deleted is not None:
            assert (name in names) != deleted, f"{name} was acknowledged as deleted={deleted}"
        elif name not in names:
            known.deleted[name] = True
            known.tags[name] = set()
    assert list((folder / "data" / "stages").iterdir()) == []
    assert list((folder / "data" / "imports").iterdir()) == []


async def crash_again_and_again(folder: Path, num_crashes: int, seed: int) -> None:
    rng = random.Random(seed)
    known = Acknowledged()
    imports = folder / "imports"
    imports.mkdir()
    for crash in range(num_crashes + 1):
        async with Store(folder) as store, store.client() as client:
            if not crash:
                await client.register(SPEC)
            await check(client, known, folder)
            working = asyncio.ensure_future(error_of(work(client, known, rng, imports)))
            await asyncio.wait([working], timeout=rng.uniform(0.02, 0.5))
            store.kill()
            assert isinstance(await working, HotslotError)
    async with Store(folder):
        pass  # collects what the crashes left behind
    kept = blobs_on_disk(folder)
    catalog = SqlCatalog(open_database(f"sqlite:///{folder / 'data' / SQLITE_FILE}"))
    assert kept == catalog.referenced_weights()
    assert kept


def blobs_on_disk(folder: Path) -> set[tuple[TenantId, Digest]]:
    return {(DEFAULT_TENANT, Digest(f"sha256:{path.name}")) for path in folder.glob("data/blobs/*/*/*")}


async def test_what_was_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    await crash_again_and_again(tmp_path, num_crashes=4, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_what_was_acknowledged_survives_200_sigkills(tmp_path: Path) -> None:
    await crash_again_and_again(tmp_path, num_crashes=200, seed=1)
