"""Redis belongs to an attacker: no process ends, no prompt goes to an address of the attacker's, answers stay right."""

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hotslot import GenerationRequest, HotslotClient
from hotslot.contract.control import WorkerState
from hotslot.contract.generation import AdapterSelection
from hotslot.errors import CoordinationUnavailableError, RevisionCompactedError
from hotslot.ids import Digest, WorkerId, digest_of
from hotslot.local.embedded_valkey import EmbeddedValkey, embedded_valkey
from shared.coordination import directory_functions
from shared.coordination.connection import RedisConnection
from shared.coordination.directory import Directory
from shared.coordination.directory_functions import MAX_ENTRY_BYTES, MAX_HOLDERS, MAX_READ_BYTES, MAX_TEXT_BYTES
from shared.coordination.keys import PoolKeys
from shared.coordination.member import FleetMember
from shared.coordination.seals import RecordSeals
from shared.fleet.records import ReportedLoad, WorkerReport
from shared.pool_secret import PoolSecret
from shared.settings import RedisUrl
from tests.integration.coordination.fleet import LEASE_S, POOL, digest, member_of, put, resident, worker
from tests.support.checkpoints import adapter
from tests.support.echo_model import echo_model, voice
from tests.support.fleet import Member, fleet_of, until_known
from tests.support.forger import ATTACKS, Forger, Trap, listening_trap, secret_in
from tests.support.patient_redis import patient
from tests.support.store import StoreClient, open_store
from tests.support.waiting import until_async
from tests.support.worker_process import running_process

KEYS = PoolKeys.of(POOL)
SPEC = echo_model().spec
SIGNED_AT = re.compile(r'"seal":"(\d+)\.')
NAMES = ("one", "two", "three")
ROUNDS = 6
ATTACKS_A_ROUND = 5
PROMPTS_A_ROUND = 6


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedValkey]:
    with embedded_valkey(max_memory_bytes=2**29) as server:
        yield server


@pytest.fixture
async def redis(valkey: EmbeddedValkey) -> AsyncIterator[RedisConnection]:
    async with RedisConnection(patient(valkey.url)) as connection:
        await connection.run(lambda client: client.flushall())
        yield connection
        # The attacker's keys have no end.
        await connection.run(lambda client: client.flushall())


@dataclass
class Besieged:
    """A store and two workers with a secret, a client, and the attacker."""

    store: StoreClient
    digests: dict[str, Digest]
    members: list[Member]
    client: HotslotClient
    forger: Forger
    trap: Trap

    async def prompt(self, name: str) -> str:
        request = GenerationRequest("hello", adapters=(AdapterSelection(name),))
        return (await self.client.complete(request, timeout_s=60)).choices[0].text

    async def serve(self, dice: random.Random) -> None:
        """Prompts over the client and over each worker, all of them answered right."""
        for _ in range(PROMPTS_A_ROUND):
            name = dice.choice(NAMES)
            assert await self.prompt(name) == voice(self.digests[name])
        for member in self.members:
            name = dice.choice(NAMES)
            assert (await (await member.calls()).generate(name)).text == voice(self.digests[name])


@asynccontextmanager
async def besieged(
    redis: RedisConnection, url: str, folder: Path, dice: random.Random, **settings: Any
) -> AsyncIterator[Besieged]:
    async with AsyncExitStack() as stack:
        chosen = {"pool_secret_file": secret_in(folder), **settings}
        store = await stack.enter_async_context(open_store(folder / "data", redis_url=RedisUrl(url), **chosen))
        await store.register(SPEC)
        digests = {}
        for seed, name in enumerate(NAMES):
            digests[name] = Digest(
                (await store.push(adapter(spec=SPEC, seed=seed), name, base_model=SPEC.digest)).digest
            )
        members = await stack.enter_async_context(fleet_of(2, store.endpoint, url, **chosen))
        trap = await stack.enter_async_context(listening_trap())
        client = await stack.enter_async_context(
            HotslotClient(store.endpoint, members[0].endpoint, base_model=SPEC.digest, patience_s=5)
        )
        forger = Forger(
            redis, SPEC.digest, digest_of(b"other"), list(digests.values()), trap, folder, secret_in(folder), dice
        )
        yield Besieged(store, digests, members, client, forger, trap)


@pytest.mark.parametrize("seed", range(4))
async def test_a_fleet_serves_on_while_an_attacker_writes_whatever_it_likes(
    redis: RedisConnection, valkey: EmbeddedValkey, tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    async with besieged(redis, valkey.url, tmp_path, dice) as siege:
        ends = [asyncio.create_task(member.loops.until_failed()) for member in siege.members]
        await siege.serve(dice)
        await siege.forger.record()
        for _ in range(ROUNDS):
            for name in [dice.choice(ATTACKS) for _ in range(ATTACKS_A_ROUND)]:
                await siege.forger.attack(name)
                await siege.serve(dice)
                assert not any(end.done() for end in ends), name
                assert siege.trap.calls == [], name
            await siege.forger.record()
        await redis.run(lambda client: client.flushall())
        await until_known(siege.members)
        await siege.serve(dice)
        for end in ends:
            end.cancel()
        assert siege.trap.calls == []


@pytest.mark.parametrize("name", ATTACKS)
async def test_each_attack_by_itself_leads_no_reader_and_ends_no_worker(
    redis: RedisConnection, valkey: EmbeddedValkey, tmp_path: Path, name: str
) -> None:
    """At the level of one reader and one member, without a store: quick enough for every attack."""
    secret = PoolSecret(secret_in(tmp_path))
    seals = RecordSeals(secret)
    async with listening_trap() as trap:
        directory = Directory(redis, seals)
        members = [member_with(redis, name, seals) for name in ("w-1", "w-2")]
        for member in members:
            await beat(member)
        digests = [resident(number).digest for number in (1, 2)]
        forger = Forger(
            redis, POOL, digest_of(b"other"), digests, trap, tmp_path, secret_in(tmp_path), random.Random(1)
        )
        await forger.record()
        assert len(forger.recorded) == 2
        for _ in range(3):
            await forger.attack(name)
            await only_genuine(directory, trap)
            for member in members:
                with suppress(CoordinationUnavailableError):
                    await beat(member)
        await redis.run(lambda client: client.flushall())
        for member in members:
            await beat(member)
        view = await directory.workers(POOL)
        assert [record.info.worker_id for record in view.workers] == ["w-1", "w-2"]


def member_with(redis: RedisConnection, name: str, seals: RecordSeals) -> FleetMember:
    report = WorkerReport(WorkerState.READY, ReportedLoad(), ())
    return member_of(redis, worker(name), lambda: report, seals=seals)


async def beat(member: FleetMember) -> None:
    await member.announce(WorkerState.READY, ReportedLoad())
    await member.touch_pool()
    await member.report([resident(1), resident(2)], 1)


async def only_genuine(directory: Directory, trap: Trap) -> None:
    """What a reader gets is what genuine workers wrote, or less."""
    view = await directory.workers(POOL)
    assert {record.info.worker_id for record in view.workers} <= {"w-1", "w-2"}
    assert all(record.info.endpoint != trap.endpoint for record in view.workers)
    assert all(record.lease_expire_time_s <= view.time_s + LEASE_S for record in view.workers)
    digests = [resident(number).digest for number in (1, 2)]
    for wanted, placed in (await directory.placements(POOL, digests)).items():
        assert all(p.resident in (resident(1), resident(2)) and p.resident.digest == wanted for p in placed)
        assert {p.worker_id for p in placed} <= {"w-1", "w-2"}
    for name in ("w-1", "w-2", "forged-copy"):
        held = await directory.residency(POOL, WorkerId(name))
        assert all(p.resident in (resident(1), resident(2)) for p in held)
        assert not held or name != "forged-copy"
    await directory.pools()
    with suppress(CoordinationUnavailableError, RevisionCompactedError):
        for change in (await directory.changes(POOL, await directory.revision(POOL) - 1)).changes:
            assert change.after in (None, resident(1), resident(2))


async def test_no_claim_of_its_place_ends_the_process_of_a_worker(
    redis: RedisConnection, valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    secret_file = secret_in(tmp_path)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(tmp_path / "data"))
        await store.register(SPEC)
        process = await stack.enter_async_context(
            running_process(store.endpoint, redis_url=valkey.url, pool_secret_file=str(secret_file))
        )
        directory = Directory(redis, RecordSeals(PoolSecret(secret_file)))

        async def is_listed() -> bool:
            return [r.info.endpoint for r in (await directory.workers(SPEC.digest)).workers] == [process.endpoint]

        await until_async(is_listed)
        trap = await stack.enter_async_context(listening_trap())
        digests = [resident(1).digest]
        forger = Forger(redis, SPEC.digest, digest_of(b"other"), digests, trap, tmp_path, secret_file, random.Random(1))
        await forger.record()
        (worker_id,) = forger.recorded
        key = PoolKeys.of(SPEC.digest).worker(WorkerId(worker_id))

        async def signed_at_ms() -> int:
            with suppress(CoordinationUnavailableError):  # of another type
                found = SIGNED_AT.search(await redis.run(lambda client: client.hget(key, "load")) or "")
                return int(found[1]) if found else 0
            return 0

        for name in ("claim_endpoints", "take_the_lease", "claim_by_record", "spoil_types"):
            await forger.attack(name)
            attacked_ms = time.time() * 1e3

            async def has_beaten_on(since_ms: float = attacked_ms) -> bool:
                return process.process.returncode is not None or await signed_at_ms() > since_ms + 1_000

            await until_async(has_beaten_on)
            assert process.process.returncode is None, name
            await until_async(is_listed)
        assert await process.is_alive()
        assert trap.calls == []


async def test_a_redis_that_is_full_fills_no_reader(redis: RedisConnection) -> None:
    long, many = "x" * (MAX_TEXT_BYTES + 1), 3_000
    await redis.run(lambda client: client.zadd(KEYS.leases, {f"w-{n}": 10**14 for n in range(many)}))
    for n in range(many):
        fields = {"info": long if n % 3 else "y" * MAX_TEXT_BYTES, "state": "s", "load": "l"}
        await put(redis, KEYS.worker(WorkerId(f"w-{n}")), fields)
    held = {f"w-{n}": long if n % 2 else "z" * 9_000 for n in range(many)}
    for key in (KEYS.placements(digest(1)), KEYS.residency(WorkerId("w-1"))):
        await put(redis, key, held)
    crowd = {f"w-{n}": "[]" for n in range(MAX_HOLDERS + 1)}
    await put(redis, KEYS.placements(digest(2)), crowd)
    await redis.run(lambda client: client.xadd(KEYS.changes, {"worker": "w", "changes": "c" * (MAX_ENTRY_BYTES + 1)}))
    listed = await directory_functions.workers(redis, leases=KEYS.leases, since=KEYS.since, prefix=KEYS.prefix)
    sizes = [len(name) + sum(map(len, fields.values())) for name, fields in listed.fields]
    assert sum(sizes) <= MAX_READ_BYTES
    assert max(sizes) <= 2 * MAX_TEXT_BYTES
    assert len(sizes) > 100
    placed = await directory_functions.placements(
        redis, since=KEYS.since, placements=[KEYS.placements(digest(n)) for n in (1, 2)], prefix=KEYS.prefix
    )
    assert 0 < sum(len(value) for _, value in placed.found[0]) <= MAX_READ_BYTES
    assert placed.found[1] == (("", ""),)
    resident_bytes = await directory_functions.residency(
        redis, residency=KEYS.residency(WorkerId("w-1")), prefix=KEYS.prefix
    )
    assert 0 < sum(len(value) for _, value in resident_bytes) <= MAX_READ_BYTES
    read = await directory_functions.changes(
        redis, changes=KEYS.changes, prefix=KEYS.prefix, start="0-0", count=10, retention_ms=1_000
    )
    assert [fields for _, fields in read.entries] == [{}]
    await redis.run(lambda client: client.flushall())
