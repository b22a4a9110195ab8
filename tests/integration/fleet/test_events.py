"""Names move when their tags do: without waiting for staleness, which is an hour here unless a test says otherwise."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from hotslot.ids import DEFAULT_TENANT, Digest
from hotslot.local.child_processes import free_port
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as store_pb
from hotslot.references import parse_reference
from tests.integration.fleet.conftest import SPEC, Catalog
from tests.support.echo_model import voice
from tests.support.fleet import Member, joined
from tests.support.store import open_store
from tests.support.waiting import until, until_async

HOUR_S = 3600.0


@pytest.fixture
async def member(store: Catalog, redis_url: str) -> AsyncIterator[Member]:
    async with joined(store.endpoint, redis_url, staleness_s=HOUR_S) as worker:
        yield worker


async def is_watching(member: Member) -> None:
    await until(lambda: member.worker.parts.watch.is_live(DEFAULT_TENANT))


async def test_a_moved_tag_is_prepared_before_anybody_asks_and_then_served(member: Member, store: Catalog) -> None:
    calls = await member.calls()
    assert (await calls.generate("one")).text == voice(store.digests["one"])
    await is_watching(member)
    new = Digest(await store.push("one", 17))
    reference = parse_reference("one")
    references = member.worker.parts.provider.references

    def has_flipped() -> bool:
        version = references.resolve_known(DEFAULT_TENANT, reference)
        return version is not None and version.digest == new

    await until(has_flipped)
    assert new in member.model.decoder.decoded
    assert any(weights.digest == new for weights in member.model.runner.slots.values()), "it is in slots already"
    assert (await calls.generate("one")).text == voice(new)


async def test_a_name_that_is_only_routed_by_moves_without_being_loaded(member: Member, store: Catalog) -> None:
    references = member.worker.parts.provider.references
    reference = parse_reference("one")
    assert (await references.resolve_current(DEFAULT_TENANT, reference)).digest == store.digests["one"]
    await is_watching(member)
    new = await store.push("one", 17)

    def has_moved() -> bool:
        version = references.resolve_known(DEFAULT_TENANT, reference)
        return version is not None and version.digest == new

    await until(has_moved)
    assert not member.model.decoder.decoded


@pytest.mark.parametrize(
    ("method", "request_of"),
    [
        ("DeleteAdapter", lambda digest: store_pb.DeleteAdapterRequest(name="one")),
        ("DeleteTag", lambda digest: store_pb.DeleteTagRequest(adapter="one", tag="latest")),
        ("DeleteVersion", lambda digest: store_pb.DeleteVersionRequest(adapter="one", digest=digest, force=True)),
    ],
)
async def test_what_is_deleted_is_not_served_any_more(
    member: Member, store: Catalog, method: str, request_of: Any
) -> None:
    calls = await member.calls()
    await calls.generate("one")
    await is_watching(member)
    await store.client.call(method, request_of(store.digests["one"]))

    async def is_refused() -> bool:
        try:
            await calls.generate("one")
        except grpc.aio.AioRpcError as exc:
            return exc.code() is grpc.StatusCode.NOT_FOUND
        return False

    await until_async(is_refused)
    assert (await calls.generate("two")).text == voice(store.digests["two"])


async def test_what_moved_while_the_store_was_away_is_heard_of_when_it_is_back(tmp_path: Path, redis_url: str) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    async with AsyncExitStack() as stack:
        async with open_store(tmp_path / "data", listen=endpoint, grace_s=0.0) as client:
            await client.register(SPEC)
            store = Catalog(client, {})
            await store.push("one", 0)
            member = await stack.enter_async_context(joined(endpoint, redis_url, staleness_s=HOUR_S))
            calls = await member.calls()
            await calls.generate("one")
            await is_watching(member)
        await until(lambda: not member.worker.parts.watch.is_live(DEFAULT_TENANT))
        assert (await calls.generate("one")).text == voice(store.digests["one"]), "it goes on serving what it has"
        async with open_store(tmp_path / "data", grace_s=0.0) as client:
            new = await Catalog(client, {}).push("one", 17)
        async with open_store(tmp_path / "data", listen=endpoint, grace_s=0.0):

            async def has_moved() -> bool:
                return (await calls.generate("one")).text == voice(new)

            await until_async(has_moved)


async def test_another_catalog_at_the_same_address_is_noticed_though_it_has_come_further(
    tmp_path: Path, redis_url: str
) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    async with AsyncExitStack() as stack:
        async with open_store(tmp_path / "lost", listen=endpoint, grace_s=0.0) as client:
            await client.register(SPEC)
            await Catalog(client, {}).push("one", 0)
            member = await stack.enter_async_context(joined(endpoint, redis_url, staleness_s=HOUR_S))
            calls = await member.calls()
            await calls.generate("one")
            await is_watching(member)
        await until(lambda: not member.worker.parts.watch.is_live(DEFAULT_TENANT))
        async with open_store(tmp_path / "new", grace_s=0.0) as client:
            await client.register(SPEC)
            store = Catalog(client, {})
            new = await store.push("one", 20)
            # So that it has come further, and what comes next does not concern the name.
            for seed, name in enumerate(("two", "three")):
                await store.push(name, seed)
        async with open_store(tmp_path / "new", listen=endpoint, grace_s=0.0):

            async def is_anew() -> bool:
                return (await calls.generate("one")).text == voice(new)

            await until_async(is_anew)
