"""Calls that find no room go all their way for that: of one caller few do so at once, until some find room again."""

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from hotslot.errors import QueueFullError
from hotslot.pb.hotslot.store.v1 import blob_pb2
from shared.server import late_refusals, paced_calls
from shared.server.paced_calls import FRUITLESS, ROOMLESS
from tests.hostile.test_call_floods import paced
from tests.hostile.test_connections import Blobs, dialled
from tests.support.waiting import until

pytestmark = pytest.mark.integration


class FullUploads(Blobs):
    """Says that there is no room, once all that is to come has come."""

    def __init__(self) -> None:
        super().__init__()
        self.met, self.gate, self.is_full = 0, asyncio.Event(), True

    async def WriteBlob(self, request: Any, context: Any) -> Any:
        self.met += 1
        async for _ in request:
            pass
        await self.gate.wait()
        if self.is_full:
            raise QueueFullError("too many uploads", subject="uploads")
        return blob_pb2.WriteBlobResponse()


async def test_a_caller_that_found_no_room_goes_all_the_way_with_few_calls_at_once_until_it_finds_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late_refusals, "HEARS_AFTER_S", 0.1)
    monkeypatch.setattr(paced_calls, "ROOMLESS_FOR_S", 600.0)
    blobs = FullUploads()
    async with paced(tmp_path, blobs, per_s=100.0) as running, dialled(running.server) as stub:
        loud = running.token("loud")

        async def written() -> grpc.StatusCode:
            call = stub.WriteBlob(iter([blob_pb2.WriteBlobRequest(data=b"x")]), metadata=loud)
            code: grpc.StatusCode = await call.code()
            return code

        blobs.gate.set()
        assert await written() is grpc.StatusCode.RESOURCE_EXHAUSTED
        blobs.gate.clear()
        await asyncio.sleep(0.5)
        began_s, before = time.monotonic(), blobs.met
        calls = [asyncio.create_task(written()) for _ in range(40)]
        await until(lambda: sum(each.done() for each in calls) + blobs.met - before == 40)
        assert blobs.met - before <= (100 + 100 * (time.monotonic() - began_s)) / (ROOMLESS - FRUITLESS) + 1
        blobs.is_full = False
        blobs.gate.set()
        await asyncio.gather(*calls)
        # Those that end well count once: as many again may come.
        for _ in range(12):
            assert await written() is grpc.StatusCode.OK
