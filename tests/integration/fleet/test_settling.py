"""A request is settled once: the versions that it is routed by are those that serve it."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from hotslot.ids import DEFAULT_TENANT, Digest, TenantId
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as store_pb
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from hotslot.references import parse_reference
from tests.integration.fleet.conftest import Catalog
from tests.support.echo_model import voice
from tests.support.fleet import Member
from worker_service.routing.forwarding import Parcel

ONE = parse_reference("one")


async def test_a_tag_that_moves_while_a_request_is_routed_is_the_next_requests(
    pair: list[Member], store: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    front, _ = pair
    old, routed_by = store.digests["one"], list[Sequence[Digest]]()

    async def before(tenant: TenantId, digests: Sequence[Digest], here: Any, policy: Any) -> list[Any]:
        """The catalog changes, and this worker hears of it, while the way is being found; it is this worker's."""
        routed_by.append(digests)
        if len(routed_by) == 1:
            await store.push("one", 7)
            await front.worker.parts.control.load(DEFAULT_TENANT, parse_reference("one"))
        return []

    monkeypatch.setattr(front.router, "before", before)
    calls = await front.calls()
    first, second = await calls.generate("one"), await calls.generate("one")
    assert (first.started.adapters[0].digest, first.text) == (old, voice(old))
    moved = store.digests["one"]
    assert (second.started.adapters[0].digest, second.text) == (moved, voice(moved))
    assert routed_by == [(old,), (moved,)]


async def test_defaults_that_change_while_a_request_is_routed_are_the_next_requests(
    pair: list[Member], store: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    front, _ = pair
    parts = front.worker.parts
    routed_by: list[Sequence[Digest]] = []

    async def before(tenant: TenantId, digests: Sequence[Digest], here: Any, policy: Any) -> list[Any]:
        routed_by.append(digests)
        parts.policy.disable(DEFAULT_TENANT)
        return []

    monkeypatch.setattr(front.router, "before", before)
    calls = await front.calls()
    first, second = await calls.generate("one"), await calls.generate("one")
    assert [adapter.digest for adapter in first.started.adapters] == [store.digests["one"]]
    assert not second.started.adapters
    assert routed_by == [(store.digests["one"],), ()]


@pytest.fixture
def sent(pair: list[Member], monkeypatch: pytest.MonkeyPatch) -> list[pb.GenerateRequest]:
    """Requests that the first worker sends on."""
    router, found = pair[0].router, list[pb.GenerateRequest]()
    forward = router.forward

    def noted(peer: Any, parcel: Parcel) -> AsyncGenerator[bytes, None]:
        found.append(pb.GenerateRequest.FromString(parcel.message))
        return forward(peer, parcel)

    monkeypatch.setattr(router, "forward", noted)
    return found


async def move(store: Catalog, other: Member) -> None:
    """The tag stands for another version, and the other worker has it."""
    await store.push("one", 7)
    await other.worker.parts.control.load(DEFAULT_TENANT, ONE)


async def delete(store: Catalog, other: Member) -> None:
    """The tag is gone, and the other worker has heard of it."""
    await store.client.call("DeleteTag", store_pb.DeleteTagRequest(adapter="one", tag="latest"))
    other.worker.parts.provider.references.forget(DEFAULT_TENANT, Digest(store.digests["one"]))


@pytest.mark.parametrize("change", [move, delete])
async def test_a_tag_that_changes_before_the_hop_is_served_as_it_was_settled(
    pair: list[Member],
    store: Catalog,
    sent: list[pb.GenerateRequest],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Catalog, Member], Awaitable[None]],
) -> None:
    front, other = pair
    old = store.digests["one"]

    async def before(tenant: TenantId, digests: Sequence[Digest], here: Any, policy: Any) -> list[Any]:
        if not sent:
            await change(store, other)
        sight = await front.router.view.look(digests)
        assert sight is not None
        return [record for worker_id, record in sight.fleet.workers.items() if worker_id == other.worker_id]

    monkeypatch.setattr(front.router, "before", before)
    answer = await (await front.calls()).generate("one")
    served = answer.started.adapters[0]
    assert (answer.started.worker_id, answer.text) == (other.worker_id, voice(old))
    assert (served.reference, served.digest) == ("one:latest", old), "told as it was asked for"
    assert [adapter.reference for adapter in sent[0].adapters] == [f"one:latest@{old}"], "as any release reads it"


async def test_a_name_is_known_wherever_it_was_forwarded_to(
    pair: list[Member], store: Catalog, sent: list[pb.GenerateRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    front, other = pair

    async def before(tenant: TenantId, digests: Sequence[Digest], here: Any, policy: Any) -> list[Any]:
        sight = await front.router.view.look(digests)
        assert sight is not None
        return [record for worker_id, record in sight.fleet.workers.items() if worker_id == other.worker_id]

    monkeypatch.setattr(front.router, "before", before)
    await (await front.calls()).generate("one")
    assert len(sent) == 1
    known = other.worker.parts.provider.references.resolve_known(DEFAULT_TENANT, ONE)
    assert known is not None
    assert known.digest == store.digests["one"]
    held = other.worker.parts.provider.tiers.holdings.held(DEFAULT_TENANT, known.digest)
    assert held.references == ("one:latest",)
