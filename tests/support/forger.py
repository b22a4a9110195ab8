"""An attacker who owns a real Valkey: writes every kind of key, in every form that may harm, and counts its callers."""

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotslot.contract.placement import Tier
from hotslot.errors import CoordinationUnavailableError
from hotslot.ids import Digest, WorkerId
from shared.coordination.connection import RedisConnection
from shared.coordination.encoding import encode_load, encode_resident
from shared.coordination.keys import POOLS, PoolKeys
from shared.coordination.seals import RecordSeals
from shared.fleet.records import ReportedLoad, Resident
from shared.pool_secret import PoolSecret

FAR_MS = 10**14
HUGE = 2**20
GARBAGE: tuple[bytes, ...] = (
    b"", b"garbage", b"\xff\xfe\x00", b"null", b"{}", b"-1", b"1e999", b"NaN", b"9" * 40, b"[" * 100_000,
    b'{"a":' * 20_000, b"x" * HUGE, b'{"worker_id": 5, "endpoint": [], "epoch": "x"}', b'["slot", 0, 5, {}]',
    b'["slot", 0, "\\ud800", "n"]', b'[["sha256:x", "", "y"]]', b'{"seal":"1.1.1.AAAAAAAAAAAAAAAAAAAAAA"}',
)  # fmt: skip
OTHER_TYPES: Mapping[str, tuple[Any, ...]] = {
    "string": ("SET", "garbage"),
    "hash": ("HSET", "garbage", "garbage"),
    "zset": ("ZADD", "7", "garbage"),
    "stream": ("XADD", "*", "garbage", "garbage"),
    "list": ("RPUSH", "garbage"),
    "set": ("SADD", "garbage"),
}


@dataclass
class Trap:
    """A socket that the forger listens on: whoever is led there is counted."""

    port: int
    calls: list[bytes] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def listening_trap(port: int = 0) -> AsyncIterator[Trap]:
    trap = Trap(0)

    async def called(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        trap.calls.append(await reader.read(64))
        writer.close()

    server = await asyncio.start_server(called, "127.0.0.1", port)
    trap.port = server.sockets[0].getsockname()[1]
    async with server:
        yield trap


def secret_in(folder: Path, name: str = "pool") -> Path:
    """A file with a secret of that name."""
    path = folder / f"{name}.secret"
    path.write_text(f"{name:*<40}\n", "utf-8")
    return path


@dataclass
class Forger:
    """Attacks on one pool, each by the method of its name."""

    redis: RedisConnection
    pool: Digest
    other_pool: Digest
    digests: Sequence[Digest]
    trap: Trap
    folder: Path
    secret_file: Path
    dice: random.Random
    recorded: dict[str, dict[str, str]] = field(default_factory=dict)
    """Genuine records of workers, as they lay in Redis earlier."""
    placed: dict[tuple[str, Digest], str] = field(default_factory=dict)
    """Genuine values by worker_id and digest."""

    def __post_init__(self) -> None:
        self.keys = PoolKeys.of(self.pool)

    async def attack(self, name: str) -> None:
        """Make the attack of that name."""
        await getattr(self, name)()

    async def run(self, *words: Any) -> Any:
        """Run a command; what is in its way goes, and a server that is full takes no more."""
        try:
            return await self.redis.run(lambda client: client.execute_command(*words))
        except CoordinationUnavailableError as exc:
            if "maxmemory" in exc.message:
                return None
            if "WRONGTYPE" not in exc.message:
                raise
        await self.redis.run(lambda client: client.execute_command("DEL", words[1]))
        return await self.redis.run(lambda client: client.execute_command(*words))

    async def record(self) -> None:
        """Keep what genuine workers have written."""
        for worker_id in await self.workers():
            found = await self.run("HGETALL", self.keys.worker(worker_id))
            fields = dict(zip(found[::2], found[1::2], strict=True)) if isinstance(found, list) else dict(found)
            if '"seal"' in fields.get("load", ""):
                self.recorded[worker_id] = fields
        for digest in self.digests:
            held = await self.run("HGETALL", self.keys.placements(digest))
            pairs = zip(held[::2], held[1::2], strict=True) if isinstance(held, list) else held.items()
            self.placed |= {(worker_id, digest): value for worker_id, value in pairs}

    async def workers(self) -> list[WorkerId]:
        """Genuine workers, as far as they are known."""
        names: list[str] = await self.run("ZRANGE", self.keys.leases, 0, -1)
        return [WorkerId(name) for name in names if not name.startswith("forged")]

    async def put_worker(self, worker_id: str, fields: Mapping[str, Any]) -> None:
        """A worker whose lease runs for ever, and that holds everything."""
        key = self.keys.worker(WorkerId(worker_id))
        await self.run("DEL", key)
        flat = [part for pair in fields.items() for part in pair]
        await self.run("HSET", key, *flat, "lease_until_ms", FAR_MS, "residency_revision", 1)
        await self.run("DEL", self.keys.leases) if self.dice.random() < 0.2 else None
        await self.run("ZADD", self.keys.leases, FAR_MS, worker_id)

    async def hold_everything(self, worker_id: str, value: Callable[[Digest], str]) -> None:
        for digest in self.digests:
            text = value(digest)
            for key, name in (
                (self.keys.placements(digest), worker_id),
                (self.keys.residency(WorkerId(worker_id)), digest),
            ):
                await self.run("HSET", key, name, text)

    def info(self, worker_id: str, **changed: Any) -> str:
        """A genuine worker's info with the trap as its endpoint."""
        like = json.loads(next(iter(self.recorded.values()))["info"]) if self.recorded else {}
        return json.dumps({**like, "worker_id": worker_id, "endpoint": self.trap.endpoint, **changed})

    def resident(self, digest: Digest) -> str:
        return encode_resident(Resident(digest, Tier.SLOT, name="one"))

    async def forged(self, worker_id: str, seals: RecordSeals, pool: Digest) -> None:
        info, load = self.info(worker_id), encode_load(ReportedLoad(0, 0, 64, 8, 8))
        sealed = seals.seal_load(pool, WorkerId(worker_id), info, "ready", load, 10_000, 1)
        await self.put_worker(worker_id, {"info": info, "state": "ready", "load": sealed, "token": "t", "epoch": 2**52})
        await self.hold_everything(
            worker_id, lambda digest: seals.seal_resident(pool, WorkerId(worker_id), digest, self.resident(digest))
        )

    async def invent(self) -> None:
        await self.forged("forged-unsigned", RecordSeals(), self.pool)

    async def seal_with_another_secret(self) -> None:
        seals = RecordSeals(PoolSecret(secret_in(self.folder, "forger")))
        await self.forged("forged-other-secret", seals, self.pool)

    async def seal_for_another_pool(self) -> None:
        """As a worker of another pool that is the forger's, or has been taken over, would sign."""
        await self.forged("forged-other-pool", RecordSeals(PoolSecret(self.secret_file)), self.other_pool)

    async def lead_astray(self) -> None:
        """Another endpoint in a record that is genuine but for it."""
        for worker_id, fields in self.recorded.items():
            await self.put_worker(worker_id, {**fields, "info": self.info(worker_id)})

    async def swap_workers(self) -> None:
        for fields in self.recorded.values():
            await self.put_worker("forged-copy", fields)
            await self.run("HSET", self.keys.worker(WorkerId("forged-copy")), "info", self.info("forged-copy"))

    async def swap_residents(self) -> None:
        for (worker_id, digest), value in self.placed.items():
            for other in self.digests:
                if other != digest:
                    await self.run("HSET", self.keys.placements(other), worker_id, value)
            await self.run("HSET", self.keys.placements(digest), "forged-copy", value)

    async def replay(self) -> None:
        for worker_id, fields in self.recorded.items():
            await self.put_worker(worker_id, fields)

    async def claim_endpoints(self) -> None:
        for worker_id, fields in self.recorded.items():
            endpoint = json.loads(fields["info"])["endpoint"]
            await self.forged("forged-claim", RecordSeals(), self.pool)
            key = self.keys.endpoint(endpoint)
            await self.run("DEL", key)
            await self.run("HSET", key, "worker_id", "forged-claim", "epoch", 2**52)
            await self.run("PEXPIRE", key, 60_000)
            await self.run("PEXPIRE", self.keys.worker(WorkerId("forged-claim")), 60_000)
            assert worker_id

    async def claim_by_record(self) -> None:
        """Another worker's genuine record, as the holder of this endpoint."""
        for fields in self.recorded.values():
            for holder in self.recorded:
                key = self.keys.endpoint(json.loads(fields["info"])["endpoint"])
                await self.run("DEL", key)
                await self.run("HSET", key, "worker_id", holder, "epoch", 2**52)
                await self.run("PEXPIRE", key, 60_000)

    async def take_the_lease(self) -> None:
        for worker_id, fields in self.recorded.items():
            key = self.keys.worker(WorkerId(worker_id))
            huge = "x" * HUGE if self.dice.random() < 0.5 else "mine"
            await self.run("DEL", key)
            await self.run("HSET", key, *sum(fields.items(), ()), "token", huge, "epoch", 2**52)
            await self.run("PEXPIRE", key, 60_000)

    def every_key(self) -> list[tuple[str, str]]:
        worker_id = WorkerId(self.dice.choice([*self.recorded, "forged-x"]))
        endpoint = json.loads(self.recorded[worker_id]["info"])["endpoint"] if worker_id in self.recorded else "h:1"
        digest = self.dice.choice(list(self.digests))
        keys = self.keys
        return [(keys.worker(worker_id), "hash"), (keys.endpoint(endpoint), "hash"), (keys.since, "string"),
                (keys.leases, "zset"), (keys.residency(worker_id), "hash"), (keys.placements(digest), "hash"),
                (keys.changes, "stream"), (POOLS, "zset")]  # fmt: skip

    async def spoil_fields(self) -> None:
        for key, kind in self.every_key():
            garbage = self.dice.choice(GARBAGE)
            if kind == "string":
                await self.run("SET", key, garbage)
                continue
            if await self.run("TYPE", key) not in (kind, "none"):
                await self.run("DEL", key)
            if kind == "zset":
                await self.run("ZADD", key, "+inf", garbage)
            elif kind == "stream":
                await self.run("XADD", key, "*", "worker", garbage, "changes", garbage)
            else:
                for name in [*(await self.run("HKEYS", key)), "foreign", garbage]:
                    await self.run("HSET", key, name, self.dice.choice(GARBAGE))

    async def spoil_types(self) -> None:
        for key, _ in self.every_key():
            name, *rest = OTHER_TYPES[self.dice.choice(list(OTHER_TYPES))]
            await self.run("DEL", key)
            await self.run(name, key, *rest)

    async def fill(self) -> None:
        """More than any reader should take in."""
        for key, kind in self.every_key():
            if kind in ("zset", "hash") and await self.run("TYPE", key) in (kind, "none"):
                numbers = [f"forged-{number}" for number in range(12_000)]
                value = self.resident(self.digests[0])
                pairs = [(FAR_MS, name) if kind == "zset" else (name, value) for name in numbers]
                await self.run("ZADD" if kind == "zset" else "HSET", key, *itertools.chain(*pairs))

    async def forge_changes(self) -> None:
        if await self.run("TYPE", self.keys.changes) not in ("stream", "none"):
            await self.run("DEL", self.keys.changes)
        for worker_id in [*self.recorded, "forged-x"]:
            triples = [[digest, "", self.resident(digest)] for digest in self.digests]
            await self.run("XADD", self.keys.changes, "*", "worker", worker_id, "changes", json.dumps(triples))

    async def forget_and_lie(self) -> None:
        await self.run("FLUSHALL")
        await self.run("SET", self.keys.since, f"{self.dice.randrange(10**9, 10**10)}.000000")

    async def forge_pools(self) -> None:
        members = [part for n in range(3_000) for part in (FAR_MS, f"sha256:{n:064x}")]
        await self.run("DEL", POOLS)
        await self.run("ZADD", POOLS, *members)


ATTACKS = (
    "invent",
    "seal_with_another_secret",
    "seal_for_another_pool",
    "lead_astray",
    "swap_workers",
    "swap_residents",
    "replay",
    "claim_endpoints",
    "claim_by_record",
    "take_the_lease",
    "spoil_fields",
    "spoil_types",
    "fill",
    "forge_changes",
    "forget_and_lie",
    "forge_pools",
)
