"""Policies of adapters over real sockets: what is refused, listed and watched, and what a restart leaves."""

from pathlib import Path

import pytest

from hotslot import errors
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from tests.support.checkpoints import adapter, base_spec
from tests.support.store import StoreClient, error_of, open_store


def request(**fields: object) -> pb.SetAdapterPolicyRequest:
    return pb.SetAdapterPolicyRequest(**{"adapter": "bot", **fields})  # type: ignore[arg-type]


async def test_a_policy_is_resolved_watched_and_survives_a_restart(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        await store.register()
        version = await store.push(adapter(), "bot")
        start = (await store.call("ListAdapters", pb.ListAdaptersRequest())).revision
        made = (await store.call("SetAdapterPolicy", request(min_replicas=2, max_replicas=3, pinned=True))).policy
        watching = store.adapters.WatchAdapters(
            pb.WatchAdaptersRequest(from_revision=start), metadata=store.metadata, timeout=60
        )
        event = await watching.read()
        watching.cancel()
        assert (event.revision, event.kind) == (start + 1, pb.ADAPTER_EVENT_KIND_POLICY_CHANGED)
        assert (event.adapter, made.etag) == ("bot", f"r{event.revision}")
    async with open_store(tmp_path) as store:
        resolved = await store.call("ResolveAdapter", pb.ResolveAdapterRequest(reference="bot"))
        assert resolved.policy == made
        pinned = await store.call(
            "ListPinnedVersions", pb.ListPinnedVersionsRequest(base_model_digest=base_spec().digest)
        )
        assert [(it.digest, it.policy) for it in pinned.versions] == [(version.digest, made)]
        await store.call("DeleteAdapterPolicy", pb.DeleteAdapterPolicyRequest(adapter="bot", etag=made.etag))
        resolved = await store.call("ResolveAdapter", pb.ResolveAdapterRequest(reference="bot"))
        assert not resolved.HasField("policy")


@pytest.mark.parametrize(
    ("wrong", "fields"),
    [
        ({"min_replicas": -1}, ["min_replicas"]),
        ({"min_replicas": 10_001}, ["min_replicas"]),
        ({"max_replicas": -1}, ["max_replicas"]),
        ({"min_replicas": 3, "max_replicas": 2}, ["max_replicas"]),
        ({"min_replicas": -1, "max_replicas": 10_001}, ["min_replicas", "max_replicas"]),
    ],
)
async def test_bounds_are_checked_and_every_field_at_fault_is_named(
    store: StoreClient, wrong: dict[str, int], fields: list[str]
) -> None:
    await store.push(adapter(), "bot")
    failure = await error_of(store.call("SetAdapterPolicy", request(**wrong)))
    assert isinstance(failure, errors.InvalidRequestError)
    assert [problem.field for problem in failure.fields] == fields
    missing = await error_of(store.call("GetAdapterPolicy", pb.GetAdapterPolicyRequest(adapter="bot")))
    assert isinstance(missing, errors.PolicyNotFoundError)


async def test_listings_have_pages_and_tokens_of_their_own(store: StoreClient) -> None:
    for number in range(3):
        await store.push(adapter(), f"bot-{number}")
        await store.call("SetAdapterPolicy", request(adapter=f"bot-{number}", pinned=True))
    base, names, digests, token = base_spec().digest, [], [], ""
    for _ in range(2):
        page = await store.call("ListAdapterPolicies", pb.ListAdapterPoliciesRequest(page_size=2, page_token=token))
        token = page.next_page_token
        names += [policy.adapter for policy in page.policies]
    assert (names, token) == (["bot-0", "bot-1", "bot-2"], "")
    for _ in range(2):
        wanted = pb.ListPinnedVersionsRequest(page_size=2, page_token=token, base_model_digest=base)
        page = await store.call("ListPinnedVersions", wanted)
        token = page.next_page_token
        digests += [it.policy.adapter for it in page.versions]
    assert (digests, token) == (names, "")
    first = await store.call("ListAdapterPolicies", pb.ListAdapterPoliciesRequest(page_size=1))
    foreign = pb.ListPinnedVersionsRequest(page_token=first.next_page_token, base_model_digest=base)
    assert isinstance(await error_of(store.call("ListPinnedVersions", foreign)), errors.InvalidPageTokenError)
