"""A store that may write no large files: every way in answers QUOTA_EXCEEDED, leaves nothing, and small things work."""

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from hotslot import errors
from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
from hotslot.ids import digest_of
from hotslot.local.child_processes import free_port
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from tests.support.checkpoints import adapter
from tests.support.store import StoreClient, dial, error_of, open_store
from tests.support.waiting import until

MAX_FILE_BYTES = 3 * 1024**2
WIDE = BaseSpec("acme/wide", "llama", "f", (BaseModule("model.layers.0.mlp.wide_proj", ModuleKind.LINEAR, 2048, 2048),))
LARGE = adapter(("wide_proj",), spec=WIDE, rank=256)
SMALL = adapter(("wide_proj",), spec=WIDE, rank=1)


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))


@asynccontextmanager
async def limited_store(folder: Path, **settings: Any) -> AsyncIterator[StoreClient]:
    """A store in a process of its own, whose files may have MAX_FILE_BYTES at most."""
    port = free_port()
    variables = {"LISTEN": f"127.0.0.1:{port}", "DATA_DIR": str(folder), "LOG_LEVEL": "warning", **settings}
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", "store_service"],
        env={**os.environ, **{f"HOTSLOT_{name}": value for name, value in variables.items()}},
        preexec_fn=limit_files,  # noqa: PLW1509 (no other threads matter before exec)
    )

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        await until(listens)
        async with dial(f"127.0.0.1:{port}") as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 30)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_no_room_is_a_quota_on_every_way_in(tmp_path: Path) -> None:
    data, url = tmp_path / "data", f"file://{tmp_path / 'objects'}"
    LARGE.write(tmp_path / "imports" / "large")
    async with open_store(data, blob_url=url) as store:
        await store.register(WIDE)
        version = await store.push(LARGE, "large")
    (blob,) = files_in(data / "blobs")
    assert blob.stat().st_size > MAX_FILE_BYTES
    uploaded = [pb.UploadedFile(path=name, digest=digest_of(content)) for name, content in LARGE.files().items()]
    blob.unlink()
    async with limited_store(data, BLOB_URL=url, IMPORT_ROOTS=str(tmp_path / "imports")) as store:
        folder = pb.DirectorySource(path=str(tmp_path / "imports" / "large"))
        for name, attempt in {
            "upload": store.write(os.urandom(MAX_FILE_BYTES + 1000)),
            "publish": store.call("CreateVersion", pb.CreateVersionRequest(reference="again", files=uploaded)),
            "import": store.stream("ImportAdapter", pb.ImportAdapterRequest(reference="imported", directory=folder)),
            "restore": store.read(version.manifest.weights_digest),
        }.items():
            error = await error_of(attempt)
            assert isinstance(error, errors.QuotaExceededError), (name, error)
            assert "no space" in error.message
        await until(lambda: not [path for name in ("stages", "imports", "restores") for path in files_in(data / name)])
        assert files_in(data / "blobs") == []
        small = await store.push(SMALL, "small")
        assert digest_of(await store.read(small.manifest.weights_digest)) == small.manifest.weights_digest
        assert await store.names() == ["large", "small"]
