"""What imports at the same time share, how callers leave and come back, and which refusals are remembered."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hotslot import errors
from tests.support.checkpoints import adapter, base_spec
from tests.support.fake_hub import COMMIT, FakeHub
from tests.support.store import StoreClient, error_of, finish, hub_request, open_store, reach
from tests.support.waiting import until

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@pytest.fixture
async def store(tmp_path: Path, hub: FakeHub) -> AsyncIterator[StoreClient]:
    async with open_store(tmp_path / "data", hub_endpoint=hub.endpoint) as client:
        await client.register()
        yield client


async def left_nothing(folder: Path) -> None:
    await until(lambda: list((folder / "imports").iterdir()) == [])


async def test_fifty_names_for_one_content_are_one_download(store: StoreClient, hub: FakeHub) -> None:
    hub.gate = threading.Event()
    requests = [hub_request(f"bot-{i}:v{i}", revision=("main", "v1", COMMIT)[i % 3]) for i in range(50)]
    requests[7].labels["team"] = "blue"
    requests[8].base_model = base_spec().name
    calls = store.import_calls(*requests)
    await asyncio.gather(*(reach(call, "FETCHING") for call in calls))
    hub.gate.set()
    versions = await asyncio.gather(*(finish(call) for call in calls))
    assert len({version.digest for version in versions}) == 1
    assert sorted(version.adapter for version in versions) == sorted(f"bot-{i}" for i in range(50))
    assert (hub.requests[CONFIG], hub.requests[WEIGHTS]) == (1, 1)
    assert await store.names(labels={"team": "blue"}) == ["bot-7"]


async def test_tenants_share_no_download(store: StoreClient, hub: FakeHub) -> None:
    hub.gate = threading.Event()
    calls = [*store.import_calls(hub_request()), *store.of("acme").import_calls(hub_request())]
    await asyncio.gather(*(reach(call, "FETCHING") for call in calls))
    hub.gate.set()
    await asyncio.gather(*(finish(call) for call in calls))
    assert hub.requests[WEIGHTS] == 2


async def test_imports_that_share_a_download_fail_each_for_itself(store: StoreClient, hub: FakeHub) -> None:
    other = base_spec("acme/other", num_layers=1)
    await store.register(other)
    hub.gate = threading.Event()
    good, bad = store.import_calls(hub_request("good"), hub_request("bad", base_model=other.name))
    await asyncio.gather(reach(good, "FETCHING"), reach(bad, "FETCHING"))
    hub.gate.set()
    assert (await finish(good)).adapter == "good"
    with pytest.raises(Exception, match=r"layers\.1"):
        await finish(bad)
    assert hub.requests[WEIGHTS] == 1


async def test_no_more_than_max_imports_fetch_or_lie_on_the_disk(tmp_path: Path, hub: FakeHub) -> None:
    async with open_store(tmp_path, hub_endpoint=hub.endpoint, max_imports=2) as store:
        await store.register()
        for i in range(6):
            hub.repositories[f"acme/bot-{i}"] = adapter(seed=i).files()
        hub.gate = threading.Event()
        calls = store.import_calls(*(hub_request(f"bot-{i}", repo_id=f"acme/bot-{i}") for i in range(6)))
        await until(lambda: (hub.requests["api"], hub.requests[CONFIG]) == (6, 2))
        assert len(list((tmp_path / "imports").iterdir())) == 2
        hub.gate.set()
        assert len({(await finish(call)).digest for call in calls}) == 6
        await left_nothing(tmp_path)


async def test_progress_goes_through_the_stages_and_counts_bytes(store: StoreClient, hub: FakeHub) -> None:
    hub.pause_after = [700]
    size_bytes = sum(len(hub.repositories["acme/bot"][name]) for name in (CONFIG, WEIGHTS))
    (call,) = store.import_calls(hub_request())
    seen = [await reach(call, "FETCHING", size_bytes - len(hub.repositories["acme/bot"][WEIGHTS]) + 700)]
    assert seen[0].done_bytes < size_bytes
    hub.go_on.set()
    seen += [response.progress async for response in call if response.HasField("progress")]
    assert [progress.stage for progress in seen] == sorted(progress.stage for progress in seen)
    assert [progress.done_bytes for progress in seen] == sorted(progress.done_bytes for progress in seen)
    assert {progress.total_bytes for progress in seen} == {size_bytes}


async def test_a_caller_who_comes_back_is_told_how_far_the_same_import_is(store: StoreClient, hub: FakeHub) -> None:
    hub.pause_after = [700]
    (first,) = store.import_calls(hub_request())
    told = await reach(first, "FETCHING", 700)
    first.cancel()
    (second,) = store.import_calls(hub_request())
    assert (await anext(aiter(second))).progress == told
    hub.go_on.set()
    assert (await finish(second)).source == f"hf:acme/bot@{COMMIT}"
    assert (hub.requests["api"], hub.requests[WEIGHTS]) == (1, 1)


async def test_an_import_without_callers_is_cancelled_after_its_linger(tmp_path: Path, hub: FakeHub) -> None:
    settings = {"hub_endpoint": hub.endpoint, "hub_timeout_s": 3.0, "import_linger_s": 0.0}
    async with open_store(tmp_path, **settings) as store:
        await store.register()
        hub.pause_after = [700]
        (call,) = store.import_calls(hub_request())
        await reach(call, "FETCHING", 700)
        call.cancel()
        await left_nothing(tmp_path)
        assert hub.requests[WEIGHTS] == 1
        assert await store.names() == []
        assert (await store.import_(hub_request())).source == f"hf:acme/bot@{COMMIT}"


async def test_who_still_waits_keeps_what_another_gave_up(tmp_path: Path, hub: FakeHub) -> None:
    async with open_store(tmp_path, hub_endpoint=hub.endpoint, import_linger_s=0.0) as store:
        await store.register()
        hub.pause_after = [700]
        same, again, other = store.import_calls(hub_request(), hub_request(), hub_request("other"))
        for call in (same, again, other):
            await reach(call, "FETCHING", 700)
        same.cancel()
        with capture_logs() as logs:
            other.cancel()
            await until(lambda: "import_cancelled" in [entry["event"] for entry in logs])
        hub.go_on.set()
        assert (await finish(again)).adapter == "bot"
        await left_nothing(tmp_path)
        assert await store.names() == ["bot"]
        assert hub.requests[WEIGHTS] == 1


async def test_the_linger_ends_when_a_caller_comes_back(tmp_path: Path, hub: FakeHub) -> None:
    linger_s = 2.0
    async with open_store(tmp_path, hub_endpoint=hub.endpoint, import_linger_s=linger_s) as store:
        await store.register()
        hub.pause_after = [700]
        (first,) = store.import_calls(hub_request())
        await reach(first, "FETCHING", 700)
        with capture_logs() as logs:
            first.cancel()
            await until(lambda: "CANCELLED" in [entry.get("code") for entry in logs])
        (second,) = store.import_calls(hub_request())
        await reach(second, "FETCHING", 700)
        loop = asyncio.get_running_loop()
        late_s = loop.time() + 2 * linger_s
        await until(lambda: loop.time() > late_s)
        hub.go_on.set()
        assert (await finish(second)).adapter == "bot"


def spoil(hub: FakeHub) -> None:
    draft = adapter()
    draft.config["r"] = 3
    hub.repositories["acme/bot"] = draft.files()


async def test_invalid_content_is_refused_again_without_a_download(store: StoreClient, hub: FakeHub) -> None:
    spoil(hub)
    first = await error_of(store.import_(hub_request()))
    second = await error_of(store.import_(hub_request("other-name", revision="v1")))
    assert isinstance(first, errors.InvalidAdapterError)
    assert isinstance(second, errors.InvalidAdapterError)
    assert second.violations == first.violations
    assert hub.requests[WEIGHTS] == 1
    await error_of(store.of("acme").import_(hub_request()))
    assert hub.requests[WEIGHTS] == 2


async def test_another_commit_is_not_held_back_by_the_one_before(store: StoreClient, hub: FakeHub) -> None:
    spoil(hub)
    await error_of(store.import_(hub_request()))
    hub.repositories["acme/bot"], hub.commit = adapter().files(), "d" * 40
    assert (await store.import_(hub_request())).source == f"hf:acme/bot@{'d' * 40}"


async def test_a_refusal_ends_when_its_base_model_changes(store: StoreClient, hub: FakeHub) -> None:
    spec = base_spec(num_layers=3)
    hub.repositories["acme/bot"] = adapter(spec=spec).files()
    assert isinstance(await error_of(store.import_(hub_request())), errors.InvalidAdapterError)
    await store.register(spec, move=True)
    assert (await store.import_(hub_request())).adapter == "bot"


async def test_what_the_hub_does_not_have_is_asked_for_once(store: StoreClient, hub: FakeHub) -> None:
    for reference in ("bot", "other-name"):
        error = await error_of(store.import_(hub_request(reference, repo_id="acme/nothing")))
        assert isinstance(error, errors.SourceNotFoundError)
    assert hub.requests["api"] == 1
    await error_of(store.of("acme").import_(hub_request(repo_id="acme/nothing")))
    assert hub.requests["api"] == 2


async def test_what_may_pass_is_not_remembered(store: StoreClient, hub: FakeHub) -> None:
    hub.fail_with["api"] = [503]
    assert isinstance(await error_of(store.import_(hub_request())), errors.SourceUnavailableError)
    hub.replace[WEIGHTS] = b"x" * len(hub.repositories["acme/bot"][WEIGHTS])
    assert isinstance(await error_of(store.import_(hub_request())), errors.DigestMismatchError)
    hub.replace.clear()
    assert (await store.import_(hub_request())).adapter == "bot"


async def test_refusals_are_forgotten(tmp_path: Path, hub: FakeHub) -> None:
    async with open_store(tmp_path, hub_endpoint=hub.endpoint, import_refusal_ttl_s=0.0) as store:
        await store.register()
        spoil(hub)
        for _ in range(2):
            await error_of(store.import_(hub_request()))
            await error_of(store.import_(hub_request(repo_id="acme/nothing")))
        assert (hub.requests[WEIGHTS], hub.requests["api"]) == (2, 4)
