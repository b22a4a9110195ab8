"""Adapter resources come to be in the store what their specs say, whatever happens to watches and controllers."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller_service.adapter_resource import FINALIZER
from hotslot.errors import AdapterNotFoundError, PolicyNotFoundError, TagNotFoundError
from tests.integration.controller.conftest import Cluster
from tests.support.waiting import until, until_async

pytestmark = pytest.mark.integration


async def test_a_resource_is_imported_tagged_and_told(cluster: Cluster) -> None:
    cluster.api.create("bot", {"uri": cluster.source("bot"), "name": "acme/bot", "tag": "v1", "labels": {"team": "a"}})
    await cluster.controller()
    status = await cluster.until_phase("bot", "Ready")
    version = (await cluster.client.resolve("acme/bot:v1")).version
    assert (status["digest"], status["reference"], status["source"]) == (version.digest, "acme/bot:v1", version.source)
    assert (status["rank"], status["baseModel"]) == (version.max_rank, version.base_model)
    assert {each["type"]: each["status"] for each in status["conditions"]} == {"Ready": "True", "Imported": "True"}
    assert (await cluster.client.get("acme/bot")).labels == {"team": "a"}
    # What is as it should be is written once, however often it is looked at.
    before = len(cluster.api.requests)
    await asyncio.sleep(0.6)
    assert [each for each in cluster.api.requests[before:] if each.startswith("status")] == []


async def test_another_uri_moves_the_tag_and_another_policy_imports_nothing(cluster: Cluster) -> None:
    await cluster.controller()
    cluster.api.create("bot", {"uri": cluster.source("one")})
    first = (await cluster.until_phase("bot", "Ready"))["digest"]
    cluster.api.respec("bot", uri=cluster.source("two", rank=2), policy={"minReplicas": 2, "pinned": True})
    second = await cluster.until_phase("bot", "Ready")
    assert await cluster.digest_of("bot") == second["digest"] != first
    assert second["desiredReplicas"] == 2
    policy = await cluster.client.get_policy("bot")
    assert (policy.min_replicas, policy.pinned) == (2, True)
    resource = cluster.api.resources["bot"]["spec"]
    del resource["policy"]
    cluster.api.respec("bot")
    third = await cluster.until_phase("bot", "Ready")
    assert "desiredReplicas" not in third
    with pytest.raises(PolicyNotFoundError):
        await cluster.client.get_policy("bot")
    assert [version.digest async for version in cluster.client.list_versions("bot")] == [second["digest"], first]


async def test_what_others_change_in_the_store_is_brought_back(cluster: Cluster) -> None:
    await cluster.controller()
    cluster.api.create("bot", {"uri": cluster.source("one"), "policy": {"maxReplicas": 3}})
    digest = (await cluster.until_phase("bot", "Ready"))["digest"]
    cluster.api.create("other", {"uri": cluster.source("two", rank=2), "name": "bot", "tag": "next"})
    other = (await cluster.until_phase("other", "Ready"))["digest"]

    async def is_back() -> bool:
        try:
            return bool(await cluster.digest_of("bot") == digest)
        except (AdapterNotFoundError, TagNotFoundError):
            return False

    await cluster.client.set_tag("bot", "latest", other)
    await until_async(is_back)
    await cluster.client.delete_tag("bot", "latest")
    await until_async(is_back)
    await cluster.client.set_policy("bot", max_replicas=9)

    async def is_bounded() -> bool:
        return (await cluster.client.get_policy("bot")).max_replicas == 3

    await until_async(is_bounded)
    await cluster.client.delete_adapter("bot")
    await until_async(is_back)


async def test_a_refused_adapter_says_why_and_a_mended_one_is_imported(cluster: Cluster) -> None:
    await cluster.controller()
    cluster.api.create("bot", {"uri": f"dir:{cluster.folder / 'imports' / 'missing'}"})
    status = await cluster.until_phase("bot", "Failed")
    ready = cluster.api.condition("bot", "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "SourceNotFound")
    assert "missing" in ready["message"]
    assert "digest" not in status
    cluster.api.respec("bot", uri=cluster.source("bot"))
    await cluster.until_phase("bot", "Ready")
    cluster.api.create("odd", {"uri": "ftp://x/y", "tag": "a b"})
    await cluster.until_phase("odd", "Failed")
    assert cluster.api.condition("odd", "Ready")["reason"] == "InvalidSpec"


async def test_deleting_does_what_the_policy_says(cluster: Cluster) -> None:
    await cluster.controller()
    uri = cluster.source("bot")
    cluster.api.create("kept", {"uri": uri})
    cluster.api.create("gone", {"uri": uri, "deletionPolicy": "Delete"})
    cluster.api.create("beside", {"uri": uri, "name": "gone", "tag": "other"})
    for name in ("kept", "gone", "beside"):
        await cluster.until_phase(name, "Ready")
    assert cluster.api.resources["gone"]["metadata"]["finalizers"] == [FINALIZER]
    assert not cluster.api.resources["kept"]["metadata"].get("finalizers")
    for name in ("kept", "gone"):
        cluster.api.delete(name)
    await until(lambda: "gone" not in cluster.api.resources)
    assert (await cluster.client.get("kept")).tags
    # Another resource's tag keeps the adapter.
    assert [tag.name for tag in (await cluster.client.get("gone")).tags] == ["other"]
    cluster.api.respec("beside", deletionPolicy="Delete")
    await until(lambda: bool(cluster.api.resources["beside"]["metadata"].get("finalizers")))
    cluster.api.delete("beside")
    await until(lambda: "beside" not in cluster.api.resources)
    with pytest.raises(AdapterNotFoundError):
        await cluster.client.get("gone")


async def test_a_deletion_is_done_by_a_controller_that_comes_later(cluster: Cluster) -> None:
    cluster.api.create("bot", {"uri": cluster.source("bot"), "deletionPolicy": "Delete"})
    async with cluster.stack:
        await cluster.controller()
        await cluster.until_phase("bot", "Ready")
    cluster.api.delete("bot")
    assert "bot" in cluster.api.resources
    await cluster.controller()
    await until(lambda: "bot" not in cluster.api.resources)
    with pytest.raises(AdapterNotFoundError):
        await cluster.client.get("bot")


async def test_controllers_beside_each_other_come_to_the_same(cluster: Cluster) -> None:
    for _ in range(3):
        await cluster.controller()
    uris = [cluster.source(f"bot-{number}", rank=number + 1) for number in range(4)]
    for number, uri in enumerate(uris):
        cluster.api.create(f"bot-{number}", {"uri": uri, "policy": {"minReplicas": number + 1}})
    for number in range(4):
        status = await cluster.until_phase(f"bot-{number}", "Ready")
        assert await cluster.digest_of(f"bot-{number}") == status["digest"]
        assert [version async for version in cluster.client.list_versions(f"bot-{number}")][1:] == []
    # They end: none undoes what another one wrote.
    await until_quiet(cluster)


async def until_quiet(cluster: Cluster) -> None:
    """Return once a while has passed without a write."""
    seen = [-1]

    async def is_quiet() -> bool:
        await asyncio.sleep(0.5)
        seen.append(sum("status" in each for each in cluster.api.requests))
        return seen[-1] == seen[-2]

    await until_async(is_quiet)


@pytest.mark.parametrize("in_stream", [True, False])
async def test_versions_that_the_api_has_forgotten_are_listed_anew(cluster: Cluster, in_stream: bool) -> None:
    cluster.api.gone_in_stream = in_stream
    await cluster.controller(resync_s=3600)
    await until(lambda: "watch" in cluster.api.requests)
    cluster.api.create("one", {"uri": cluster.source("one")})
    await cluster.until_phase("one", "Ready")
    cluster.api.failing = 3
    cluster.api.cut()
    cluster.api.create("two", {"uri": cluster.source("two")})
    cluster.api.compact()
    await cluster.until_phase("two", "Ready")
    assert cluster.api.requests.count("list") >= 2


async def test_a_watch_goes_on_from_the_last_bookmark(cluster: Cluster) -> None:
    await cluster.controller(resync_s=3600)
    await until(lambda: "watch" in cluster.api.requests)
    cluster.api.create("one", {"uri": cluster.source("one")})
    await cluster.until_phase("one", "Ready")
    cluster.api.write_elsewhere()
    told = cluster.api.bookmarks
    await until(lambda: cluster.api.bookmarks > told + 1)
    # What happened before the bookmark is forgotten: only a watch that goes on from there needs no new list.
    cluster.api.compact()
    cluster.api.cut()
    cluster.api.create("two", {"uri": cluster.source("two")})
    await cluster.until_phase("two", "Ready")
    assert cluster.api.requests.count("list") == 1


async def test_pages_of_a_long_list_are_read_whole(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller_service.kubernetes_api.PAGE_SIZE", 2)
    uri = cluster.source("bot")
    for number in range(5):
        cluster.api.create(f"bot-{number}", {"uri": uri})
    await cluster.controller(resync_s=3600)
    for number in range(5):
        await cluster.until_phase(f"bot-{number}", "Ready")
    assert cluster.api.requests.count("list") == 3


STEPS = st.lists(
    st.sampled_from(["respec", "delete", "create", "cut", "compact", "fail", "move"]), min_size=1, max_size=10
)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_whatever_happens_the_store_ends_as_the_resources_say(cluster: Cluster, steps: list[str]) -> None:
    uris = [cluster.source(f"v{number}", rank=number + 1) for number in range(3)]
    async with cluster.stack:
        await cluster.controller()
        for number, step in enumerate(steps):
            name = f"bot-{number % 2}"
            exists = (
                name in cluster.api.resources and "deletionTimestamp" not in cluster.api.resources[name]["metadata"]
            )
            if step == "create" and name not in cluster.api.resources:
                cluster.api.create(name, {"uri": uris[number % 3], "deletionPolicy": "Delete"})
            elif step == "respec" and exists:
                cluster.api.respec(name, uri=uris[number % 3])
            elif step == "delete" and exists:
                cluster.api.delete(name)
            elif step == "cut":
                cluster.api.cut()
            elif step == "compact":
                cluster.api.compact()
            elif step == "fail":
                cluster.api.failing = 2
            elif step == "move":
                await asyncio.sleep(0.05)
        for name in list(cluster.api.resources):
            if "deletionTimestamp" not in cluster.api.resources[name]["metadata"]:
                status = await cluster.until_phase(name, "Ready")
                assert await cluster.digest_of(name) == status["digest"]
            else:
                await until(lambda name=name: name not in cluster.api.resources)  # type: ignore[misc]
        for name in ("bot-0", "bot-1"):
            if name not in cluster.api.resources:
                with pytest.raises(AdapterNotFoundError):
                    await cluster.client.get(name)
        for name in list(cluster.api.resources):
            cluster.api.delete(name)
        await until(lambda: not cluster.api.resources)
