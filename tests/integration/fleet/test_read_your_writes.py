"""Requests that pass on the revision of a write are served by what was written, whichever worker they come to."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from hotslot.errors import AdapterNotFoundError, CatalogBehindError, InvalidRequestError, TagNotFoundError
from hotslot.ids import Digest
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as store_pb
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2 as control_pb
from hotslot.rpc.min_revision import MIN_REVISION_KEY
from hotslot.rpc.status import from_rpc_error
from tests.integration.fleet.conftest import SPEC, Catalog
from tests.support.checkpoints import adapter
from tests.support.echo_model import voice
from tests.support.echo_worker import Calls, make_request
from tests.support.fleet import Member, fleet_of

HOUR_S = 3600.0


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker hears of a change: what it knows without asking is an hour old."""

    async def no_changes(*args: object) -> AsyncIterator[None]:
        yield None
        await asyncio.Event().wait()

    monkeypatch.setattr("worker_service.adapters.store_client.StoreView.watch", no_changes)


@pytest.fixture
async def members(deaf: None, store: Catalog, redis_url: str) -> AsyncIterator[list[Member]]:
    async with fleet_of(3, store.endpoint, redis_url, staleness_s=HOUR_S) as members:
        for member in members:
            await (await member.calls(marked=True)).generate("one")
        yield members


async def written(store: Catalog, reference: str, seed: int) -> tuple[str, int]:
    """Publish a version; returns its digest and the revision."""
    files = await store.client.upload(adapter(spec=SPEC, seed=seed))
    request = store_pb.CreateVersionRequest(reference=reference, files=files, base_model=SPEC.digest)
    response = await store.client.call("CreateVersion", request)
    return response.version.digest, response.revision


async def error_of(call: Any) -> Exception:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


@pytest.mark.parametrize("marked", [True, False], ids=["here", "anywhere"])
async def test_a_published_version_serves_the_request_that_names_its_revision(
    members: list[Member], store: Catalog, marked: bool
) -> None:
    old = store.digests["one"]
    for seed in range(20, 24):
        digest, revision = await written(store, "one", seed)
        for member in members:
            calls = await member.calls(marked=marked)
            assert (await calls.generate("one", min_revision=revision)).text == voice(digest)
            assert (await calls.generate("one", min_revision=revision)).started.adapters[0].digest == digest
        old = digest
    # The name has moved for all others, too.
    calls = await members[0].calls(marked=True)
    for _ in range(200):
        if (await calls.generate("one")).text == voice(old):
            break
    else:
        raise AssertionError("a name stayed behind what a request was served by")


async def test_without_a_revision_a_worker_that_hears_nothing_is_stale(members: list[Member], store: Catalog) -> None:
    """So that the tests here can fail."""
    await written(store, "one", 30)
    calls = await members[0].calls(marked=True)
    assert (await calls.generate("one")).text == voice(store.digests["one"])


async def test_metadata_says_the_same_as_the_field_and_crosses_the_hop(members: list[Member], store: Catalog) -> None:
    digest, revision = await written(store, "one", 40)
    calls = await members[0].calls()
    members[0].worker.parts.provider.tiers.holdings.drop(Digest(store.digests["one"]))
    metadata = ((MIN_REVISION_KEY, str(revision)),)
    for member in members:
        calls = await member.calls()
        messages = [m async for m in calls.inference.Generate(make_request("one"), metadata=metadata, timeout=60)]
        assert messages[0].started.adapters[0].digest == digest


@pytest.mark.parametrize("text", ["-1", "1.5", "x", "", "9" * 30, str(2**63)])
async def test_metadata_that_is_no_revision_is_refused(members: list[Member], text: str) -> None:
    calls = await members[0].calls()

    async def call() -> None:
        metadata = ((MIN_REVISION_KEY, text),)
        async for _ in calls.inference.Generate(make_request("one"), metadata=metadata, timeout=60):
            pass

    error = await error_of(call())
    assert isinstance(error, InvalidRequestError)
    assert error.fields[0].field == MIN_REVISION_KEY


async def test_a_negative_revision_is_refused_by_every_call_that_takes_one(members: list[Member]) -> None:
    calls = await members[0].calls()
    for call in (
        calls.generate("one", min_revision=-1),
        calls.load("one", min_revision=-1),
    ):
        error = await error_of(call)
        assert isinstance(error, InvalidRequestError)
        assert [field.field for field in error.fields] == ["min_revision"]


@pytest.mark.parametrize(
    ("method", "request_of", "error"),
    [
        ("DeleteAdapter", lambda digest: store_pb.DeleteAdapterRequest(name="one"), AdapterNotFoundError),
        ("DeleteTag", lambda digest: store_pb.DeleteTagRequest(adapter="one", tag="latest"), TagNotFoundError),
        (
            "DeleteVersion",
            lambda digest: store_pb.DeleteVersionRequest(adapter="one", digest=digest, force=True),
            TagNotFoundError,
        ),
    ],
)
async def test_what_was_removed_is_not_found_at_once(
    members: list[Member], store: Catalog, method: str, request_of: Any, error: type[Exception]
) -> None:
    response = await store.client.call(method, request_of(store.digests["one"]))
    for member in members:
        calls = await member.calls()
        assert isinstance(await error_of(calls.generate("one", min_revision=response.revision)), error)


async def test_a_moved_tag_is_loaded_and_pinned_and_made_the_default_as_it_was_written(
    members: list[Member], store: Catalog
) -> None:
    digest, revision = await written(store, "one", 50)
    calls = await members[1].calls(marked=True)
    assert (await calls.load("one", min_revision=revision)).adapter.digest == digest
    error = await error_of(calls.load("one", min_revision=revision + 1))
    assert isinstance(error, CatalogBehindError)
    assert error.retry_after_s is not None


async def test_default_adapters_are_read_at_the_revision_too(members: list[Member], store: Catalog) -> None:
    calls = await members[0].calls(marked=True)
    defaults = control_pb.SetDefaultAdaptersRequest(adapters=[control_pb.DefaultAdapter(reference="one")])
    await calls.control.SetDefaultAdapters(defaults, timeout=60)
    digest, revision = await written(store, "one", 60)
    assert (await calls.generate(min_revision=revision)).text == voice(digest)


async def test_a_revision_that_is_not_the_catalogs_is_a_typed_error_and_costs_no_worker_its_place(
    members: list[Member], store: Catalog
) -> None:
    calls = await members[0].calls()
    error = await error_of(calls.generate("one", min_revision=2**62))
    assert isinstance(error, CatalogBehindError)
    assert error.retry_after_s is not None
    assert not members[0].router._avoided
    assert (await calls.generate("one")).text == voice(store.digests["one"])


async def test_many_clients_that_wait_for_one_write_ask_the_store_once_a_worker(
    members: list[Member], store: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = members[0]
    references = member.worker.parts.provider.references
    asked = 0
    resolve = references._resolver.resolve

    async def counted(*args: Any) -> Any:
        nonlocal asked
        asked += 1
        return await resolve(*args)

    monkeypatch.setattr(references._resolver, "resolve", counted)
    digest, revision = await written(store, "one", 70)
    clients: list[Calls] = [await member.calls(marked=True) for _ in range(8)]
    answers = await asyncio.gather(*(c.generate("one", min_revision=revision) for c in clients for _ in range(4)))
    assert {answer.text for answer in answers} == {voice(digest)}
    assert asked <= 2
