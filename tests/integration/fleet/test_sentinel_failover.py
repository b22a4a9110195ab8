"""Sentinels promote another node of Redis under load: answers stay right, none fails, and the fleet is whole again."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hotslot import GenerationRequest, HotslotClient
from hotslot.contract.generation import AdapterSelection
from hotslot.ids import Digest
from shared.coordination.connection import RedisConnection
from shared.coordination.directory import Directory
from shared.settings import RedisUrl
from tests.integration.fleet.conftest import SPEC
from tests.support.checkpoints import adapter
from tests.support.echo_model import voice
from tests.support.fleet import LEASE_S, fleet_of
from tests.support.forger import secret_in
from tests.support.machine_pace import slowness
from tests.support.patient_redis import patient
from tests.support.sentinels import WatchedValkey, watched_valkey
from tests.support.store import open_store
from tests.support.waiting import until, until_async

NAMES = ("one", "two", "three")
CLIENTS = 4
PROMOTED_S = 60.0
SLACK_S = 3.0


@pytest.fixture
def valkeys(tmp_path: Path) -> Iterator[WatchedValkey]:
    with watched_valkey(tmp_path / "valkeys") as running:
        yield running


class Load:
    """Clients that ask on and on, and what became of each request."""

    def __init__(self, client: HotslotClient, digests: dict[str, Digest]) -> None:
        self._client = client
        self._digests = digests
        self.answered: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.failed: list[BaseException] = []

    async def run(self, number: int) -> None:
        for turn in range(number, 1_000_000):
            name = NAMES[turn % len(NAMES)]
            request = GenerationRequest("hello", adapters=(AdapterSelection(name),))
            try:
                text = (await self._client.complete(request, timeout_s=30)).choices[0].text
            except Exception as exc:  # noqa: BLE001 (any failure counts)
                self.failed.append(exc)
                continue
            self.answered[name] += 1
            if text != voice(self._digests[name]):
                self.wrong.append(f"{name}: {text!r}")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_failover_under_load_costs_no_answer(
    valkeys: WatchedValkey, tmp_path: Path, how: signal.Signals
) -> None:
    chosen: dict[str, Any] = {"pool_secret_file": secret_in(tmp_path)}
    url = valkeys.url
    async with open_store(tmp_path / "data", redis_url=RedisUrl(url), **chosen) as store:
        await store.register(SPEC)
        digests = {}
        for seed, name in enumerate(NAMES):
            version = await store.push(adapter(spec=SPEC, seed=seed), name, base_model=SPEC.digest)
            digests[name] = Digest(version.digest)
        async with (
            fleet_of(2, store.endpoint, url, **chosen) as members,
            HotslotClient(store.endpoint, members[0].endpoint, base_model=SPEC.digest, patience_s=10) as client,
            RedisConnection(patient(url)) as redis,
        ):
            load = Load(client, digests)
            clients = [asyncio.create_task(load.run(number)) for number in range(CLIENTS)]
            await until(lambda: sum(load.answered.values()) > 20)
            old = await asyncio.to_thread(valkeys.primary)
            os.kill(valkeys.nodes[old].pid, how)
            try:

                async def is_promoted() -> bool:
                    now = await asyncio.to_thread(valkeys.primary)
                    return now != old and await asyncio.to_thread(valkeys.role, now) == "master"

                await until_async(is_promoted, timeout_s=PROMOTED_S)
                loop = asyncio.get_running_loop()
                promoted_s, directory = loop.time(), Directory(redis)

                async def is_whole() -> bool:
                    try:
                        return len((await directory.workers(SPEC.digest)).workers) == len(members)
                    except Exception:  # noqa: BLE001 (not yet)
                        return False

                await until_async(is_whole)
                whole_s = loop.time() - promoted_s
                during = sum(load.answered.values())
            finally:
                if how is signal.SIGSTOP:
                    os.kill(valkeys.nodes[old].pid, signal.SIGCONT)
            if how is signal.SIGSTOP:
                # It takes itself for the primary until a sentinel says otherwise.
                await until_async(lambda: asyncio.to_thread(lambda: valkeys.role(old) == "slave"), timeout_s=PROMOTED_S)
                await until_async(is_whole)
            await until(lambda: sum(load.answered.values()) > during + 20)
            for each in clients:
                each.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
            assert (load.wrong, load.failed) == ([], [])
            assert whole_s < (LEASE_S + SLACK_S) * slowness()
