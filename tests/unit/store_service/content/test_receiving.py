"""Whoever goes on with an upload that broke waits until it is let go of, wherever it broke."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hotslot.errors import UploadBusyError
from hotslot.ids import Digest, TenantId, digest_of
from store_service.content.receiving import UploadChunk, Uploads
from store_service.content.uploads import UploadFolder
from store_service.content.writer import Writer
from store_service.execution.offload import Offload
from tests.support.waiting import until

TENANT = TenantId("acme")
DATA = b"x" * 1000
DIGEST = digest_of(DATA)


class Gate:
    """Holds up one step of an upload on its thread."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.open.wait(120)


@pytest.fixture
def offload() -> Iterator[Offload]:
    with closing(Offload("io", 4)) as offload:
        yield offload


@pytest.fixture
def uploads(tmp_path: Path, offload: Offload) -> Uploads:
    return Uploads(UploadFolder(tmp_path, max_upload_bytes=10_000), offload)


async def messages(begin: int, end: int) -> AsyncIterator[UploadChunk]:
    yield UploadChunk(DIGEST, len(DATA), begin, DATA[begin:end], end == len(DATA))
    await asyncio.Event().wait()  # the rest of the stream does not come


@pytest.mark.parametrize("step", ["begin", "write", "publish", "close"])
async def test_the_next_stream_waits_for_what_a_broken_one_still_does(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    gate = Gate()
    passed: list[str] = []
    owner, name = (UploadFolder, step) if step == "begin" else (Writer, step)
    original = getattr(owner, name)

    def held_up(*arguments: object) -> object:
        if not passed:
            passed.append(step)
            gate()
        return original(*arguments)

    monkeypatch.setattr(owner, name, held_up)
    end = len(DATA) if step == "publish" else 400
    broken = asyncio.create_task(uploads.receive(TENANT, messages(0, end)))
    if step == "close":
        await until(lambda: bool(uploads._uploads.status(TENANT, DIGEST)[0]))
        broken.cancel()
    await until(gate.reached.is_set)
    broken.cancel()
    await until(lambda: (TENANT, DIGEST) in uploads._ending)
    status = asyncio.create_task(uploads.status(TENANT, DIGEST))
    await asyncio.sleep(0)
    assert not status.done()
    gate.open.set()
    committed, _ = await status
    with pytest.raises(asyncio.CancelledError):
        await broken
    result = await asyncio.wait_for(uploads.receive(TENANT, messages(committed, len(DATA))), 60)
    assert (result.is_complete, result.digest) == (True, DIGEST)


async def test_a_stream_beside_one_that_goes_on_is_refused(uploads: Uploads) -> None:
    running = asyncio.create_task(uploads.receive(TENANT, messages(0, 400)))
    await until(lambda: uploads._uploads.status(TENANT, DIGEST)[0] == 400)
    with pytest.raises(UploadBusyError):
        await uploads.receive(TENANT, messages(400, len(DATA)))
    running.cancel()
    await asyncio.wait([running])
    assert await uploads.missing(TENANT, [Digest(DIGEST)]) == [DIGEST]
