"""A worker of an earlier release shares a pool with one of this release: each reads, fences and sweeps the other.

`earlier/` has what the earlier release said: its Lua functions, and each call of one worker's life with its answer.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.errors import StaleEpochError
from hotslot.ids import TenantId, WorkerId
from shared.coordination.connection import RedisConnection
from shared.coordination.directory import Directory
from shared.fleet.records import ReportedLoad, Resident
from shared.metrics.numbers import Tally
from tests.integration.coordination.fleet import POOL, Member, all_keys, digest, worker
from tests.support.waiting import until_async

EARLIER = Path(__file__).parent / "earlier"
CALLS: dict[str, dict[str, Any]] = json.loads((EARLIER / "exchange.json").read_text())
FUNCTIONS = dict(part.split("\n", 1) for part in (EARLIER / "functions.lua").read_text().split("--- ")[1:])
INFO = replace(
    worker("w-old", epoch=3, endpoint="pod:1"),
    num_slots=8,
    max_rank=64,
    max_sequence_tokens=2048,
    target_modules="q_proj,v_proj",
)
TOKEN = "token of the old one"
LOAD = ReportedLoad(3, 2, 8, 4, 16, 0.25, 1.5)
RESIDENTS = (
    Resident(digest(1), Tier.SLOT, True, "acme/a1", TenantId("acme"), 0.375, ((TenantId("globex"), "their/a1"),)),
    Resident(digest(2), Tier.DISK),
)
MOVED = replace(RESIDENTS[0], tier=Tier.HOST)
_TIME = re.compile(r"\b1[78]\d{8}(\d{3}|\.\d{6})\b")


async def earlier(redis: RedisConnection, label: str, changed: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Make a recorded call as the earlier release does, with some of its texts changed."""
    call = CALLS[label]
    texts = [changed.get(text, text) for text in (*call["keys"], *call["arguments"])]
    script = FUNCTIONS["prelude"] + FUNCTIONS[call["function"]]
    return await redis.run(lambda client: client.eval(script, len(call["keys"]), *texts))


def comparable(label: str, answer: Any) -> Any:
    """An answer without the moments at which it was given, and without the order that Redis leaves open."""
    if label == "changes":
        # The times of reading, and of the oldest and each following entry, are the stream's own.
        return [fields for _, fields in answer[2]]
    whole = json.loads(_TIME.sub("TIME", json.dumps(answer)))
    return dict(zip(whole[::2], whole[1::2], strict=True)) if label == "residency" else whole


class Recorder(RedisConnection):
    """Notes what is evaluated instead of sending it."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.refused_records = Tally("hotslot_redis_records_refused_total")

    async def evaluate(self, script: Any, keys: Any, arguments: Any) -> Any:
        texts = [str(argument) for argument in arguments]
        self.calls.append({"function": script.name, "keys": list(keys), "arguments": texts})
        return {"announce": ["ok", "1", "0"]}.get(script.name, 1)


async def test_a_worker_says_what_the_earlier_release_said_byte_for_byte() -> None:
    recorder = Recorder()
    it = Member(recorder, replace(INFO, num_slots=0, max_rank=0, max_sequence_tokens=0, target_modules=""))
    await it.announce(WorkerState.STARTING)
    it.describe(INFO)
    await it.touch_pool()
    await it.report(*RESIDENTS)
    await it.announce(WorkerState.READY, LOAD)
    await it.report(MOVED)
    await it.release()
    life = ("announce starting", "touch pool", "report", "announce ready", "report moved", "release")
    said = [{part: CALLS[label][part] for part in ("function", "keys", "arguments")} for label in life]
    assert recorder.calls == json.loads(json.dumps(said).replace(TOKEN, it.token))


async def test_this_release_reads_what_the_earlier_one_wrote(redis: RedisConnection) -> None:
    directory = Directory(redis)
    start = await directory.revision(POOL)
    for label in ("announce starting", "touch pool", "report", "announce ready"):
        await earlier(redis, label)
    assert await directory.pools() == [POOL]
    (record,) = (await directory.workers(POOL)).workers
    assert (record.info, record.state, record.load, record.residency_revision) == (INFO, WorkerState.READY, LOAD, 1)
    found = await directory.placements(POOL, [digest(1), digest(2)])
    assert [p.resident for number in (1, 2) for p in found[digest(number)]] == list(RESIDENTS)
    assert {p.resident for p in await directory.residency(POOL, INFO.worker_id)} == set(RESIDENTS)
    read = await directory.changes(POOL, start)
    assert [(c.worker_id, c.before, c.after) for c in read.changes] == [("w-old", None, r) for r in RESIDENTS]
    await earlier(redis, "report moved")
    await earlier(redis, "release")
    read = await directory.changes(POOL, read.next_revision)
    assert [(c.before, c.after) for c in read.changes] == [
        (RESIDENTS[0], MOVED), (RESIDENTS[1], None), (MOVED, None)
    ]  # fmt: skip
    assert (await directory.workers(POOL)).workers == ()


async def test_the_earlier_release_reads_what_this_one_writes(redis: RedisConnection) -> None:
    start = str(await earlier(redis, "tail"))
    it = Member(redis, INFO)
    await it.announce(WorkerState.STARTING)
    await it.touch_pool()
    await it.report(*RESIDENTS)
    await it.announce(WorkerState.READY, LOAD)
    since = {CALLS["changes"]["arguments"][1]: start}
    for label in ("workers", "placements", "residency", "changes"):
        answer = await earlier(redis, label, since)
        assert comparable(label, answer) == comparable(label, CALLS[label]["answer"]), label


async def test_either_release_renews_and_gives_back_the_lease_of_the_other(redis: RedisConnection) -> None:
    """As one process does, whose functions are of either release: the records mean the same to both."""
    it = Member(redis, INFO)
    same = {TOKEN: it.token}
    await earlier(redis, "announce starting", same)
    await earlier(redis, "report", same)
    assert await it.announce(WorkerState.READY, LOAD) == 1
    assert (await earlier(redis, "announce ready", same))[2] == "1"
    assert await it.release()
    assert all(key.endswith((":changes", ":since", ":pools")) for key in await all_keys(redis))
    await it.announce()
    await it.report(*RESIDENTS)
    assert await earlier(redis, "release", same) == 1
    assert all(key.endswith((":changes", ":since", ":pools")) for key in await all_keys(redis))


async def test_each_release_fences_older_starts_of_the_other(redis: RedisConnection) -> None:
    await earlier(redis, "announce ready")
    await earlier(redis, "report")
    older = Member(redis, worker("w-older", epoch=2, endpoint="pod:1"))
    with pytest.raises(StaleEpochError, match="epoch 3"):
        await older.announce()
    newer = Member(redis, worker("w-newer", epoch=4, endpoint="pod:1"))
    await newer.announce()
    assert [record.info.worker_id for record in (await Directory(redis).workers(POOL)).workers] == ["w-newer"]
    assert await Directory(redis).residency(POOL, INFO.worker_id) == ()
    assert await earlier(redis, "announce ready") == ["stale", "4"]
    assert await earlier(redis, "report") == 0
    assert await earlier(redis, "release") == 0


async def test_each_release_sweeps_dead_workers_of_the_other(redis: RedisConnection) -> None:
    directory = Directory(redis)

    async def traces(name: str) -> list[str]:
        held = (await directory.placements(POOL, [digest(1)]))[digest(1)]
        return [*(key for key in await all_keys(redis) if name in key), *(p.worker_id for p in held)]

    dead = Member(redis, worker("w-dead"), lease_s=0.1)
    await dead.announce()
    await dead.report(RESIDENTS[0])

    async def earlier_swept() -> bool:
        await earlier(redis, "announce ready")
        return await traces("w-dead") == []

    await until_async(earlier_swept)
    await earlier(redis, "release")
    await earlier(redis, "announce ready", {"30000": "100"})
    await earlier(redis, "report")
    neighbour = Member(redis, worker("w-1"))

    async def swept() -> bool:
        await neighbour.announce()
        return await traces("w-old") == []

    await until_async(swept)
    assert WorkerId("w-1") in [record.info.worker_id for record in (await directory.workers(POOL)).workers]
