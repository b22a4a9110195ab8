"""Adapters' policies in a fleet: pinned versions are there before anybody asks, and requests stay within the bounds."""

import pytest

from hotslot.ids import DEFAULT_TENANT, Digest
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.references import parse_reference
from shared.coordination.directory import Directory
from shared.fleet.rendezvous import Rendezvous
from tests.integration.fleet.conftest import SPEC, Catalog
from tests.support.fleet import Member, fleet_of, joined, until_known
from tests.support.waiting import until, until_async
from worker_service.adapters import keeper


@pytest.fixture(autouse=True)
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper.Keeper.__init__, "__kwdefaults__", {"every_s": 0.3})
    monkeypatch.setattr(keeper, "MIN_INTERVAL_S", 0.05)


async def set_policy(store: Catalog, name: str, **fields: object) -> None:
    request = pb.SetAdapterPolicyRequest(**{"adapter": name, **fields})  # type: ignore[arg-type]
    await store.client.call("SetAdapterPolicy", request)


def keepers(members: list[Member], digest: str) -> set[str]:
    wanted = (DEFAULT_TENANT, Digest(digest))
    return {member.worker_id for member in members if wanted in member.worker.parts.provider.tiers.holdings.kept()}


async def test_a_pinned_version_is_in_memory_when_a_worker_is_ready(store: Catalog, redis_url: str) -> None:
    await set_policy(store, "one", pinned=True)
    for _ in range(2):
        async with joined(store.endpoint, redis_url) as started:
            assert keepers([started], store.digests["one"])
            assert started.worker.parts.provider.tiers.is_resident(Digest(store.digests["one"]))
            assert not started.worker.parts.provider.tiers.is_resident(Digest(store.digests["two"]))


async def test_its_homes_keep_it_and_others_take_over_when_one_leaves(
    store: Catalog, redis_url: str, directory: Directory
) -> None:
    digest = Digest(store.digests["one"])
    async with joined(store.endpoint, redis_url) as first, joined(store.endpoint, redis_url) as second:
        async with joined(store.endpoint, redis_url) as third:
            members = [first, second, third]
            await until_known(members)
            order = Rendezvous([member.worker.worker_id for member in members]).top(digest, 3)
            await set_policy(store, "one", pinned=True, min_replicas=2)
            await until(lambda: keepers(members, digest) == set(order[:2]))

            async def are_reported_as_pinned() -> bool:
                held = (await directory.placements(SPEC.digest, [digest]))[digest]
                return {p.worker_id for p in held if p.resident.pinned} == set(order[:2])

            await until_async(are_reported_as_pinned)
        await until(lambda: keepers([first, second], digest) == {first.worker_id, second.worker_id})


async def test_a_moved_tag_moves_what_is_kept_and_the_end_of_the_policy_lets_go(store: Catalog, redis_url: str) -> None:
    await set_policy(store, "one", pinned=True)
    old = store.digests["one"]
    async with joined(store.endpoint, redis_url) as member:
        assert keepers([member], old)
        new = await store.push("one", 77)
        await until(lambda: bool(keepers([member], new)) and not keepers([member], old))
        holdings = member.worker.parts.provider.tiers.holdings
        assert holdings.is_resident(Digest(new))
        assert Digest(new) not in set(holdings.evictable())
        await set_policy(store, "one", pinned=False)
        await until(lambda: not keepers([member], new))
        assert Digest(new) in set(holdings.evictable())


async def test_what_is_kept_is_not_evicted_for_requests_nor_unloaded(store: Catalog, redis_url: str) -> None:
    await set_policy(store, "one", pinned=True)
    async with joined(store.endpoint, redis_url) as member:
        provider = member.worker.parts.provider
        used = provider.tiers.holdings.used_bytes
    async with joined(store.endpoint, redis_url, host_cache_bytes=3 * used) as member:
        provider, calls = member.worker.parts.provider, await member.calls()
        for number in range(6):
            name = f"many-{number}"
            await store.push(name, 200 + number)
            await calls.generate(name)
        assert provider.tiers.is_resident(Digest(store.digests["one"]))
        assert not provider.tiers.is_resident(Digest(store.digests["many-0"]))
        held = {item.digest: item for item in await member.worker.parts.control.list(DEFAULT_TENANT)}
        assert held[Digest(store.digests["one"])].pinned
        assert held[Digest(store.digests["one"])].users == 0


async def test_requests_go_to_no_more_workers_than_the_policy_allows(store: Catalog, redis_url: str) -> None:
    await set_policy(store, "one", max_replicas=1)
    digest = Digest(store.digests["one"])
    async with fleet_of(3, store.endpoint, redis_url) as members:
        order = Rendezvous([member.worker.worker_id for member in members]).top(digest, 3)
        for member in members:
            served = await (await member.calls()).generate("one")
            assert served.started.worker_id == order[0]
        reference = parse_reference("one")
        for member in members:
            known = member.worker.parts.provider.references.resolve_known(DEFAULT_TENANT, reference)
            assert known is not None
            assert known.policy.max_replicas == 1
