"""The store in memory answers as the real store does: one exchange with each, compared step by step."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from hotslot.contract.placement import Tier
from hotslot.ids import Digest
from hotslot.local.embedded_valkey import embedded_valkey
from hotslot.rpc.channel import ChannelOptions, open_channel
from shared.coordination.connection import RedisConnection
from shared.fleet.records import Resident
from shared.server.grpc_server import ServerOptions, serve
from shared.settings import RedisUrl
from tests.contract.store_exchange import Exchange, StartWorker, speak
from tests.integration.coordination.fleet import Member, worker
from tests.support.checkpoints import adapter, base_spec
from tests.support.fake_hub import fake_hub
from tests.support.memory_store import MemoryStore
from tests.support.patient_redis import patient
from tests.support.store import open_store

SPEC = base_spec()
WORKER_ID, ENDPOINT = "w-1", "w-1:50052"


@asynccontextmanager
async def in_memory(store: MemoryStore) -> AsyncIterator[tuple[grpc.aio.Channel, StartWorker]]:
    async def start_worker(digest: str) -> None:
        store.placement.start_worker(ENDPOINT, worker_id=WORKER_ID, digests=(digest,))

    async with (
        serve(store.services(), ServerOptions(grace_s=0.1), observers=()) as server,
        open_channel(f"127.0.0.1:{server.port}", ChannelOptions(max_attempts=1)) as channel,
    ):
        yield channel, start_worker


@asynccontextmanager
async def real(folder: Path) -> AsyncIterator[tuple[grpc.aio.Channel, StartWorker]]:
    with embedded_valkey() as valkey, fake_hub() as hub:
        hub.repositories["acme/bot"] = adapter(seed=5).files()
        async with (
            RedisConnection(patient(valkey.url)) as redis,
            open_store(folder, hub_endpoint=hub.endpoint, redis_url=RedisUrl(valkey.url)) as client,
        ):

            async def start_worker(digest: str) -> None:
                member = Member(redis, worker(WORKER_ID, endpoint=ENDPOINT, pool=SPEC.digest))
                await member.announce()
                await member.touch_pool()
                await member.report(Resident(Digest(digest), Tier.SLOT))

            yield client.channel, start_worker


async def test_every_rpc_of_the_store_in_memory_answers_as_the_real_store(tmp_path: Path) -> None:
    store = MemoryStore()
    async with in_memory(store) as (channel, start_worker):
        faked = Exchange(channel)
        await speak(faked, SPEC, start_worker)
    async with real(tmp_path / "store") as (channel, start_worker):
        expected = Exchange(channel)
        await speak(expected, SPEC, start_worker)
    assert faked.answers.keys() == expected.answers.keys()
    drifted = {step: {"in memory": faked.answers[step], "real": answer} for step, answer in expected.answers.items()}
    assert {step: both for step, both in drifted.items() if both["in memory"] != both["real"]} == {}
    servicers = (store.catalog, store.blobs, store.placement, store.fleet)
    answered = {name for servicer in servicers for name in vars(type(servicer)) if name[0].isupper()}
    assert faked.methods == answered, "an RPC that the store in memory answers is not compared"
