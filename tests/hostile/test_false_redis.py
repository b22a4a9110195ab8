"""The server at Redis's address is none: whatever it answers, calls end with a typed error in time, and loops go on."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from hotslot.contract.control import WorkerState
from hotslot.errors import CoordinationUnavailableError, RevisionCompactedError
from hotslot.ids import WorkerId
from shared.coordination.connection import RedisConnection, RedisOptions
from shared.coordination.directory import Directory
from shared.coordination.seals import RecordSeals
from shared.fleet.records import ReportedLoad, WorkerReport
from shared.pool_secret import PoolSecret
from tests.integration.coordination.fleet import POOL, digest, member_of, resident, worker
from tests.support.forger import secret_in
from tests.support.waiting import until

TIMEOUT_S = 0.5
ANSWERS: Sequence[bytes] = (
    b"garbage\r\n", b"\r\n", b"\x00" * 64, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+OK\r\n", b"-ERR no\r\n", b"-\r\n",
    b"-READONLY no\r\n", b"-NOSCRIPT no\r\n", b"-MOVED 1 127.0.0.1:1\r\n", b"-ASK 1 x\r\n", b":1\r\n", b":x\r\n",
    b":" + b"9" * 5000 + b"\r\n", b"$-1\r\n", b"$-7\r\n", b"$x\r\n", b"$5\r\nab\r\n", b"$3\r\n\xff\xfe\xfd\r\n",
    b"$1000000000000\r\n", b"*-1\r\n", b"*0\r\n", b"*x\r\n", b"*1000000000\r\n", b"*1\r\n" * 3000 + b":1\r\n",
    b"*1\r\n$5\r\nstale\r\n", b"*2\r\n$5\r\nstale\r\n$1\r\nx\r\n",
    b"*2\r\n$5\r\nstale\r\n$19\r\n9999999999999999999\r\n",
    b"*3\r\n$2\r\nok\r\n$1\r\nx\r\n$1\r\ny\r\n", b"*3\r\n:1\r\n:2\r\n:3\r\n", b"*2\r\n$3\r\n1e9\r\n$0\r\n\r\n",
    b"*3\r\n$13\r\n1700000000000\r\n$0\r\n\r\n$1\r\nw\r\n",
    b"*3\r\n$1\r\n1\r\n$3\r\n1-x\r\n*1\r\n*2\r\n$1\r\n1\r\n:1\r\n",
    b"%1\r\n+a\r\n+b\r\n", b"_\r\n", b",nan\r\n", b"#t\r\n", b"(123\r\n", b">2\r\n+a\r\n+b\r\n", b"~1\r\n+a\r\n",
)  # fmt: skip


@asynccontextmanager
async def answering(*answers: bytes, seed: int = 1) -> AsyncIterator[str]:
    """The URL of a server that answers each packet with one of these."""
    dice = random.Random(seed)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while await reader.read(65536):
                writer.write(dice.choice(answers))
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def everything(redis: RedisConnection, seals: RecordSeals) -> None:
    """Each call of a reader and of a member; none may raise anything else."""
    directory = Directory(redis, seals)
    member = member_of(redis, worker("w-1"), lambda: WorkerReport(WorkerState.READY, ReportedLoad(), ()), seals=seals)
    calls = (
        redis.ping, directory.pools, lambda: directory.workers(POOL), lambda: directory.placements(POOL, [digest(1)]),
        lambda: directory.residency(POOL, WorkerId("w-1")), lambda: directory.revision(POOL),
        lambda: directory.changes(POOL, 1), lambda: member.announce(WorkerState.READY, ReportedLoad()),
        lambda: member.report([resident(1)], 1), member.touch_pool, member.release,
    )  # fmt: skip
    for call in calls:
        with suppress(CoordinationUnavailableError, RevisionCompactedError):
            async with asyncio.timeout(20 * TIMEOUT_S):
                await call()


@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
async def test_no_answer_raises_anything_but_a_typed_error(tmp_path: Path, answer: bytes) -> None:
    seals = RecordSeals(PoolSecret(secret_in(tmp_path)))
    async with answering(answer) as url, RedisConnection(RedisOptions(url, command_timeout_s=TIMEOUT_S)) as redis:
        await everything(redis, seals)


@pytest.mark.parametrize("seed", range(3))
async def test_a_member_outlives_a_server_that_answers_at_random(tmp_path: Path, seed: int) -> None:
    seals = RecordSeals(PoolSecret(secret_in(tmp_path)))
    observed = 0

    def observe() -> WorkerReport:
        nonlocal observed
        observed += 1
        return WorkerReport(WorkerState.READY, ReportedLoad(), (resident(observed % 3),))

    async with (
        answering(*ANSWERS, seed=seed) as url,
        RedisConnection(RedisOptions(url, command_timeout_s=TIMEOUT_S)) as redis,
    ):
        member = member_of(redis, worker("w-1"), observe, lease_s=0.3, seals=seals)
        task = asyncio.create_task(member.run())
        await until(lambda: observed >= 12 or task.done())
        assert not task.done()
        await member.leave()
        await asyncio.wait_for(task, 60)
