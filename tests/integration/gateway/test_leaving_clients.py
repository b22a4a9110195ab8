"""Clients that leave, sleep or break off: their generations end, and nothing of them stays."""

import asyncio
import json
import random
from pathlib import Path

import psutil
import pytest
import structlog

from tests.support.echo_model import UNHURRIED_STEP_S, echo_model
from tests.support.gateway import Served, served
from tests.support.waiting import until

log = structlog.get_logger(__name__)
pytestmark = pytest.mark.integration

NUM_SHORT, NUM_LONG = 200, 5_000
AT_ONCE = 16
AT_ONCE_LONG, LASTING_S = 200, 120.0
STALL_S = 0.5


async def ask(stack: Served, *, stream: bool, prompt: str = "endless", max_tokens: int = 400) -> "Connection":
    body = json.dumps({"model": "bot", "prompt": prompt, "max_tokens": max_tokens, "stream": stream}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.gateway.server.port)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    writer.write(head.encode() + b"\r\n\r\n" + body)
    await writer.drain()
    return Connection(reader, writer)


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def leave(self) -> None:
        self.writer.transport.abort()


def num_running(stack: Served) -> int:
    return stack.worker.parts.engine.open_sequences


async def nothing_stays(stack: Served) -> None:
    """Sooner than the generations would end by themselves."""
    await until(lambda: num_running(stack) == 0 and stack.worker.worker.in_flight == 0, timeout_s=15)
    await until(lambda: stack.gateway.server.num_connections == 0 and stack.gateway.server.num_running == 0)
    stack.worker.assert_nothing_is_held()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_client_that_leaves_ends_its_generation(tmp_path: Path, stream: bool) -> None:
    async with served(tmp_path, echo_model(step_s=UNHURRIED_STEP_S)) as stack:
        connection = await ask(stack, stream=stream)
        await until(lambda: num_running(stack) == 1)
        if stream:
            await connection.reader.readuntil(b"data: ")
        connection.leave()
        await nothing_stays(stack)
        assert stack.model.runner.slots, "the adapter stays where it is"


async def test_a_client_that_leaves_while_its_request_waits_is_forgotten(tmp_path: Path) -> None:
    async with served(tmp_path, echo_model(max_running=1, step_s=UNHURRIED_STEP_S)) as stack:
        first = await ask(stack, stream=True)
        await first.reader.readuntil(b"data: ")
        second = await ask(stack, stream=True)
        await until(lambda: num_running(stack) == 2)
        second.leave()
        await until(lambda: num_running(stack) == 1)
        first.leave()
        await nothing_stays(stack)


async def test_a_client_that_breaks_off_its_body_leaves_nothing(tmp_path: Path) -> None:
    async with served(tmp_path, gateway_body_timeout_s=0.3) as stack:
        reader, writer = await asyncio.open_connection("127.0.0.1", stack.gateway.server.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        answer = await asyncio.wait_for(reader.read(), 60)
        assert b" 408 " in answer.splitlines()[0]
        assert b"BODY_TIMEOUT" in answer
        writer.close()
        await nothing_stays(stack)


async def leave_many(stack: Served, count: int) -> None:
    """Some read to the end, some leave after a while, some at once."""
    dice = random.Random(7)
    places = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with places:
            connection = await ask(stack, stream=dice.random() < 0.8, max_tokens=dice.randrange(1, 60))
            num_reads = dice.randrange(4)
            for _ in range(num_reads):
                await connection.reader.read(200)
            connection.leave()

    await asyncio.gather(*(one() for _ in range(count)))


async def test_200_streams_with_disconnects_leave_nothing_behind(tmp_path: Path) -> None:
    async with served(tmp_path, echo_model(max_running=8, step_s=0.001)) as stack, asyncio.timeout(240):
        await leave_many(stack, NUM_SHORT)
        await nothing_stays(stack)


@pytest.mark.slow
async def test_thousands_of_streams_with_disconnects_leave_nothing_behind(tmp_path: Path) -> None:
    async with served(tmp_path, echo_model(max_running=8, step_s=0.001)) as stack, asyncio.timeout(240):
        await leave_many(stack, NUM_LONG)
        await nothing_stays(stack)
        num_tasks = len(asyncio.all_tasks())
        await leave_many(stack, NUM_SHORT)
        await nothing_stays(stack)
        assert len(asyncio.all_tasks()) <= num_tasks + 2


@pytest.mark.slow
@pytest.mark.timeout(420)
async def test_200_streams_at_a_time_with_disconnects_for_two_minutes_leave_nothing_behind(tmp_path: Path) -> None:
    process = psutil.Process()
    async with served(tmp_path, echo_model(max_running=24, max_waiting=512, step_s=0.002)) as stack:
        # Whatever is opened once and stays: templates' processes, channels, threads.
        await leave_many(stack, NUM_SHORT)
        await nothing_stays(stack)
        num_tasks, num_files = len(asyncio.all_tasks()), process.num_fds()
        dice, ended = random.Random(11), {"read": 0, "left": 0}
        until_s = asyncio.get_running_loop().time() + LASTING_S

        async def one() -> None:
            while asyncio.get_running_loop().time() < until_s:
                connection = await ask(stack, stream=True, max_tokens=dice.randrange(1, 60))
                if dice.random() < 0.3:
                    await asyncio.wait_for(connection.reader.readuntil(b"[DONE]"), LASTING_S)
                    ended["read"] += 1
                else:
                    for _ in range(dice.randrange(6)):
                        await connection.reader.read(100)
                    ended["left"] += 1
                connection.leave()

        await asyncio.gather(*(one() for _ in range(AT_ONCE_LONG)))
        log.info("streams_ended", read=ended["read"], left=ended["left"])
        assert min(ended.values()) > AT_ONCE_LONG
        await nothing_stays(stack)
        assert stack.model.runner.slots, "the adapter stays where it is"
        await until(lambda: len(asyncio.all_tasks()) <= num_tasks)
        await until(lambda: process.num_fds() <= num_files)


async def test_a_reader_that_sleeps_is_cut_off(tmp_path: Path) -> None:
    async with served(tmp_path, gateway_stall_s=STALL_S) as stack:
        # Some ten megabytes, which no socket's buffers hold.
        body = {"model": "bot", "prompt": ["endless"] * 8, "max_tokens": 500, "stream": True, "n": 4, "logprobs": 20}
        data = json.dumps(body).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", stack.gateway.server.port, limit=1)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        writer.write(head + f"content-length: {len(data)}\r\n\r\n".encode() + data)
        await until(lambda: stack.worker.worker.in_flight > 0)
        await until(lambda: stack.gateway.server.num_running == 0, timeout_s=40)
        await nothing_stays(stack)
        writer.transport.abort()
