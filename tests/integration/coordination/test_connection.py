"""What the connection promises under cancellation, delays and loss."""

import asyncio
import os
import random
import signal
from typing import Any

import pytest

from hotslot.errors import CoordinationUnavailableError
from hotslot.local.embedded_valkey import EmbeddedValkey, embedded_valkey
from shared.coordination import directory_functions
from shared.coordination.connection import RedisConnection, RedisOptions
from shared.coordination.keys import PoolKeys
from tests.support.slow_proxy import slow_proxy
from tests.support.waiting import until


async def echo(redis: RedisConnection, text: str) -> str:
    answer: Any = await redis.run(lambda client: client.echo(text))
    return str(answer)


async def test_cancelled_commands_never_hand_their_reply_to_the_next_caller(valkey_node: EmbeddedValkey) -> None:
    chance = random.Random(7)
    async with slow_proxy(valkey_node.port) as proxy:
        options = RedisOptions(f"redis://127.0.0.1:{proxy.port}", max_connections=2)
        async with RedisConnection(options) as redis:
            await redis.ping()
            proxy.delay_s = 0.01
            for number in range(40):
                doomed = asyncio.create_task(echo(redis, f"doomed {number}"))
                await asyncio.sleep(chance.uniform(0, 0.012))
                doomed.cancel()
                assert await echo(redis, f"asked {number}") == f"asked {number}"
            assert proxy.connections <= 2, "a cancelled command cost its connection"


async def test_commands_that_timed_out_never_hand_their_reply_to_the_next_caller(
    valkey_node: EmbeddedValkey,
) -> None:
    async with slow_proxy(valkey_node.port) as proxy:
        options = RedisOptions(f"redis://127.0.0.1:{proxy.port}", command_timeout_s=1.0, max_connections=1)
        async with RedisConnection(options) as redis:
            for number in range(5):
                proxy.delay_s = 0.0
                assert await echo(redis, f"asked {number}") == f"asked {number}"
                proxy.delay_s = 1.5
                with pytest.raises(CoordinationUnavailableError):
                    await echo(redis, f"late {number}")


async def test_a_cancelled_caller_stops_waiting_at_once_and_close_waits_for_the_command(
    valkey_node: EmbeddedValkey,
) -> None:
    async with slow_proxy(valkey_node.port) as proxy:
        async with RedisConnection(RedisOptions(f"redis://127.0.0.1:{proxy.port}")) as redis:
            await redis.ping()
            proxy.delay_s = 0.3
            finished: list[str] = []

            async def command(client: Any) -> None:
                finished.append(await client.echo("done"))

            task = asyncio.create_task(redis.run(command))
            await until(lambda: proxy.connections == 1)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert finished == []
        assert finished == ["done"]


async def test_a_script_is_known_again_after_the_server_forgot_it(redis: RedisConnection) -> None:
    for _ in range(2):
        keys = PoolKeys("{hotslot:x}")
        read = await directory_functions.workers(redis, leases=keys.leases, since=keys.since, prefix=keys.prefix)
        assert read.fields == ()
        await redis.run(lambda client: client.script_flush())


async def test_a_server_that_is_away_is_a_typed_error_without_its_password() -> None:
    options = RedisOptions("redis://:hunter2@127.0.0.1:1/0", command_timeout_s=1.0)
    async with RedisConnection(options) as redis:
        with pytest.raises(CoordinationUnavailableError, match=r"redis://:\*\*\*@127.0.0.1:1/0") as failure:
            await redis.ping()
    assert "hunter2" not in str(failure.value)
    assert failure.value.retry_after_s


async def test_a_frozen_server_is_a_typed_error_within_the_timeout_and_fine_afterwards() -> None:
    with embedded_valkey() as server:
        async with RedisConnection(RedisOptions(server.url, command_timeout_s=1.0)) as redis:
            await redis.ping()
            os.kill(server.pid, signal.SIGSTOP)
            started = asyncio.get_running_loop().time()
            with pytest.raises(CoordinationUnavailableError):
                await redis.ping()
            assert asyncio.get_running_loop().time() - started < 15.0
            os.kill(server.pid, signal.SIGCONT)
            await redis.ping()


async def test_a_restarted_server_is_used_at_the_first_call() -> None:
    with embedded_valkey() as server:
        redis = RedisConnection(RedisOptions(server.url))
        await redis.ping()
    with embedded_valkey(port=server.port):
        await redis.ping()
        await redis.close()


async def test_connections_are_bounded(valkey_node: EmbeddedValkey) -> None:
    async with slow_proxy(valkey_node.port) as proxy:
        options = RedisOptions(f"redis://127.0.0.1:{proxy.port}", max_connections=3)
        async with RedisConnection(options) as redis:
            proxy.delay_s = 0.01
            texts = [f"text {n}" for n in range(30)]
            assert await asyncio.gather(*(echo(redis, text) for text in texts)) == texts
            assert proxy.connections == 3
