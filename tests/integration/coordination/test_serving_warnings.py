"""A push is told what no live worker of its base model could serve; a store that cannot know says nothing."""

from dataclasses import replace
from pathlib import Path

from hotslot.ids import Digest
from hotslot.local.embedded_valkey import EmbeddedValkey
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from shared.coordination.connection import RedisConnection
from tests.integration.coordination.fleet import Member, worker
from tests.support.checkpoints import Draft, adapter
from tests.support.store import StoreClient, open_store


async def warnings_of(client: StoreClient, draft: Draft, name: str) -> list[str]:
    """Codes, as a push is told them; a dry run is told the same."""
    files = await client.upload(draft)
    created = await client.call("CreateVersion", pb.CreateVersionRequest(reference=name, files=files))
    checked = await client.call("ValidateAdapter", pb.ValidateAdapterRequest(files=files))
    assert list(checked.warnings) == list(created.warnings)
    return [warning.code for warning in created.warnings]


async def test_a_push_and_a_dry_run_name_the_settings_that_would_serve_it(
    valkey: EmbeddedValkey, redis: RedisConnection, tmp_path: Path
) -> None:
    async with open_store(tmp_path, redis_url=valkey.url) as client:
        base = await client.register()
        large, head = adapter(rank=8), adapter(("q_proj", "lm_head"))
        assert await warnings_of(client, large, "before") == [], "nobody serves the base yet"
        info = worker(pool=Digest(base.digest))
        small = Member(redis, replace(info, num_slots=2, max_rank=4, slot_rank=4, target_modules="q_proj,v_proj"))
        await small.announce()
        await small.touch_pool()
        assert await warnings_of(client, adapter(), "fits") == []
        assert await warnings_of(client, large, "large") == ["RANK_NOT_SERVED_NOW"]
        assert await warnings_of(client, head, "head") == ["TARGET_NOT_SERVED_NOW"]


async def test_a_store_without_redis_warns_of_nothing(tmp_path: Path) -> None:
    async with open_store(tmp_path) as client:
        await client.register()
        assert await warnings_of(client, adapter(rank=8), "large") == []


async def test_a_redis_that_is_away_holds_up_no_push(tmp_path: Path) -> None:
    async with open_store(tmp_path, redis_url="redis://127.0.0.1:1") as client:
        await client.register()
        assert await warnings_of(client, adapter(rank=8), "large") == []
