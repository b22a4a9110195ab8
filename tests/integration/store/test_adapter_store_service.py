"""AdapterStoreService over real sockets."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import safetensors.numpy

from hotslot import errors
from hotslot.formats.manifest import parse_manifest
from hotslot.ids import Digest, digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from store_service.rpc.paging import encode_token
from tests.support.checkpoints import adapter, base_spec
from tests.support.store import StoreClient, error_of, open_store
from tests.unit.store_service.admission.broken_checkpoints import CORPUS, Q0_A

Code = grpc.StatusCode


async def test_a_pushed_adapter_is_resolved_and_its_weights_are_read(store: StoreClient) -> None:
    draft = adapter()
    pushed = await store.push(draft, "acme/bot:v1", labels={"team": "x"})
    version = await store.resolve("acme/bot:v1")
    assert version == pushed
    assert parse_manifest(version.manifest_json, Digest(version.digest)).base_model_digest == base_spec().digest
    data = await store.read(version.manifest.weights_digest)
    assert "sha256:" + hashlib.sha256(data).hexdigest() == version.manifest.weights_digest
    tensors = safetensors.numpy.load(data)
    np.testing.assert_array_equal(tensors["model.layers.0.self_attn.q_proj.lora_A"], draft.tensors[Q0_A])
    assert json.loads(version.config_json)["lora_alpha"] == 8
    assert (version.source, version.base_model) == ("upload", "acme/tiny")


async def test_the_same_push_again_creates_nothing(store: StoreClient) -> None:
    request = pb.CreateVersionRequest(reference="bot", files=await store.upload(adapter()))
    first = await store.call("CreateVersion", request)
    second = await store.call("CreateVersion", request)
    assert (first.created, second.created) == (True, False)
    assert first.version.digest == second.version.digest


async def test_pushes_of_the_same_content_at_once_give_one_version(store: StoreClient) -> None:
    request = pb.CreateVersionRequest(reference="bot", files=await store.upload(adapter()))
    responses = await asyncio.gather(*(store.call("CreateVersion", request) for _ in range(12)))
    assert len({response.version.digest for response in responses}) == 1
    assert sum(response.created for response in responses) == 1


async def test_a_digest_in_the_reference_is_checked(store: StoreClient) -> None:
    version = await store.push(adapter(), "bot")
    assert (await store.push(adapter(), f"bot:again@{version.digest}")).digest == version.digest
    wrong = f"bot@{digest_of(b'?')}"
    assert isinstance(await error_of(store.push(adapter(), wrong)), errors.InvalidRequestError)


REFUSED: dict[str, tuple[str, type[errors.HotslotError], grpc.StatusCode]] = {
    "truncated": ("the last byte missing", errors.InvalidAdapterError, Code.INVALID_ARGUMENT),
    "NaN": ("a NaN", errors.InvalidAdapterError, Code.INVALID_ARGUMENT),
    "other base": ("a base model of other sizes", errors.BaseModelMismatchError, Code.FAILED_PRECONDITION),
    "DoRA": ("DoRA by config", errors.UnsupportedAdapterError, Code.FAILED_PRECONDITION),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_bad_checkpoint_is_refused_with_its_reason_and_changes_nothing(store: StoreClient, case: str) -> None:
    corpus_name, error_class, code = REFUSED[case]
    draft = adapter()
    CORPUS[corpus_name][0](draft)
    files = await store.upload(draft)
    error = await error_of(store.call("CreateVersion", pb.CreateVersionRequest(reference="bot", files=files)))
    assert type(error) is error_class
    assert isinstance(error, errors.InvalidAdapterError)
    assert error.violations
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await store.adapters.CreateVersion(pb.CreateVersionRequest(reference="bot", files=files))
    assert caught.value.code() is code
    assert await store.names() == []
    await store.push(adapter(), "bot")


async def test_a_rank_above_the_limit_is_refused(tmp_path: Path) -> None:
    async with open_store(tmp_path, max_rank=3) as store:
        await store.register()
        assert isinstance(await error_of(store.push(adapter(), "bot")), errors.RankTooLargeError)


@pytest.mark.parametrize("name", list(CORPUS)[::6])
async def test_validation_lists_all_violations_without_storing(store: StoreClient, name: str) -> None:
    draft = adapter()
    CORPUS[name][0](draft)
    draft.extra_files = {path: data for path, data in draft.extra_files.items() if data}
    request = pb.ValidateAdapterRequest(files=await store.upload_nonempty(draft), base_model="acme/tiny")
    response = await store.call("ValidateAdapter", request)
    assert not response.valid
    assert CORPUS[name][1] in {violation.code for violation in response.violations}
    assert await store.names() == []


async def test_a_config_that_names_no_base_because_it_is_broken_is_refused_for_that(store: StoreClient) -> None:
    draft = adapter()
    draft.raw_config = b'{"r": 0, "r": 1'
    next(iter(draft.tensors.values())).flat[0] = np.nan
    files = await store.upload(draft)
    report = await store.call("ValidateAdapter", pb.ValidateAdapterRequest(files=files))
    assert [violation.code for violation in report.violations] == ["CONFIG_NOT_JSON", "NOT_FINITE"]
    error = await error_of(store.call("CreateVersion", pb.CreateVersionRequest(reference="bot", files=files)))
    assert isinstance(error, errors.InvalidAdapterError)
    assert [violation.code for violation in error.violations] == ["CONFIG_NOT_JSON", "NOT_FINITE"]


async def test_a_sound_config_that_names_no_base_is_the_callers_mistake(store: StoreClient) -> None:
    draft = adapter()
    del draft.config["base_model_name_or_path"]
    files = await store.upload(draft)
    error = await error_of(store.call("ValidateAdapter", pb.ValidateAdapterRequest(files=files)))
    assert isinstance(error, errors.InvalidRequestError)


async def test_validation_names_the_digest_that_a_push_gives(store: StoreClient) -> None:
    files = await store.upload(adapter())
    response = await store.call("ValidateAdapter", pb.ValidateAdapterRequest(files=files))
    assert response.valid
    assert (await store.push(adapter(), "bot")).digest == response.digest


ABSENT = digest_of(b"?")
FILE = pb.UploadedFile(path="adapter_config.json", digest=ABSENT)
MD5_FILE = pb.UploadedFile(path="a", digest="md5:1")
LINEAR = pb.BaseModule(path="p", kind=pb.BASE_MODULE_KIND_LINEAR, in_features=1, out_features=1)
MISLABELLED = pb.BaseModel(name="a", model_type="b", digest=ABSENT, modules=[LINEAR])
BAD_REQUESTS: dict[str, tuple[type[errors.HotslotError], str, Any]] = {
    "no such adapter": (errors.AdapterNotFoundError, "GetAdapter", pb.GetAdapterRequest(name="no")),
    "no adapter to list": (errors.AdapterNotFoundError, "ListVersions", pb.ListVersionsRequest(adapter="no")),
    "no such tag": (errors.TagNotFoundError, "ResolveAdapter", pb.ResolveAdapterRequest(reference="bot:no")),
    "no such version": (
        errors.VersionNotFoundError, "ResolveAdapter", pb.ResolveAdapterRequest(reference=f"bot@{ABSENT}")),
    "a malformed reference": (
        errors.InvalidReferenceError, "ResolveAdapter", pb.ResolveAdapterRequest(reference="../etc")),
    "an empty reference": (errors.InvalidReferenceError, "ResolveAdapter", pb.ResolveAdapterRequest()),
    "another base": (
        errors.BaseModelMismatchError, "ResolveAdapter",
        pb.ResolveAdapterRequest(reference="bot", base_model_digest=ABSENT)),
    "files never uploaded": (
        errors.BlobNotFoundError, "CreateVersion", pb.CreateVersionRequest(reference="x", files=[FILE])),
    "no files": (errors.InvalidRequestError, "CreateVersion", pb.CreateVersionRequest(reference="x")),
    "the same file twice": (
        errors.InvalidRequestError, "CreateVersion", pb.CreateVersionRequest(reference="x", files=[FILE, FILE])),
    "a malformed digest": (
        errors.InvalidRequestError, "CreateVersion", pb.CreateVersionRequest(reference="x", files=[MD5_FILE])),
    "a negative page size": (errors.InvalidRequestError, "ListAdapters", pb.ListAdaptersRequest(page_size=-1)),
    "an invented page token": (errors.InvalidPageTokenError, "ListAdapters", pb.ListAdaptersRequest(page_token="x")),
    "another listing's page token": (
        errors.InvalidPageTokenError, "ListVersions",
        pb.ListVersionsRequest(adapter="bot", page_token=encode_token(("base_models",), (1,)))),
    "a tag of a version that is not there": (
        errors.VersionNotFoundError, "SetTag", pb.SetTagRequest(adapter="bot", tag="x", digest=ABSENT)),
    "a malformed tag": (
        errors.InvalidReferenceError, "SetTag", pb.SetTagRequest(adapter="bot", tag="-", digest=ABSENT)),
    "an old etag": (errors.EtagMismatchError, "DeleteAdapter", pb.DeleteAdapterRequest(name="bot", etag="r0")),
    "undeleting what is there": (errors.NotDeletedError, "UndeleteAdapter", pb.UndeleteAdapterRequest(name="bot")),
    "an empty base model": (errors.InvalidRequestError, "RegisterBaseModel", pb.RegisterBaseModelRequest()),
    "a base model with another digest": (
        errors.InvalidRequestError, "RegisterBaseModel", pb.RegisterBaseModelRequest(base_model=MISLABELLED)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_REQUESTS)
async def test_a_bad_request_gets_a_typed_error_and_the_store_goes_on(store: StoreClient, case: str) -> None:
    version = await store.push(adapter(), "bot")
    error_class, method, request = BAD_REQUESTS[case]
    error = await error_of(store.call(method, request))
    assert type(error) is error_class, error
    assert (await store.resolve("bot")).digest == version.digest


async def test_a_version_in_use_is_kept_and_says_by_what(store: StoreClient) -> None:
    version = await store.push(adapter(), "bot")
    request = pb.DeleteVersionRequest(adapter="bot", digest=version.digest)
    error = await error_of(store.call("DeleteVersion", request))
    assert isinstance(error, errors.VersionInUseError)
    assert "latest" in error.message
    request.force = True
    await store.call("DeleteVersion", request)
    assert isinstance(await error_of(store.read(version.manifest.weights_digest)), errors.BlobNotFoundError)


async def test_a_deleted_adapter_comes_back_whole(store: StoreClient) -> None:
    version = await store.push(adapter(), "bot")
    await store.call("DeleteAdapter", pb.DeleteAdapterRequest(name="bot"))
    assert isinstance(await error_of(store.resolve("bot")), errors.AdapterNotFoundError)
    assert isinstance(await error_of(store.read(version.manifest.weights_digest)), errors.BlobNotFoundError)
    await store.call("UndeleteAdapter", pb.UndeleteAdapterRequest(name="bot"))
    assert (await store.resolve("bot")).digest == version.digest
    assert await store.read(version.manifest.weights_digest)


async def test_pages_follow_one_another(store: StoreClient) -> None:
    files = await store.upload(adapter())
    expected = [f"bot-{number}" for number in range(7)]
    for name in expected:
        await store.call("CreateVersion", pb.CreateVersionRequest(reference=name, files=files))
    found, token = [], ""
    while True:
        response = await store.call("ListAdapters", pb.ListAdaptersRequest(page_size=3, page_token=token))
        found += [entry.name for entry in response.adapters]
        token = response.next_page_token
        if not token:
            break
    assert found == expected
    other = pb.ListAdaptersRequest(page_token=response.next_page_token or "x", name_prefix="b")
    assert isinstance(await error_of(store.call("ListAdapters", other)), errors.InvalidPageTokenError)


async def test_a_page_is_no_larger_than_any_client_takes(store: StoreClient) -> None:
    for fingerprint in range(12):
        await store.register(base_spec(f"acme/tiny-{fingerprint}", num_layers=1200, fingerprint=str(fingerprint)))
    found, token, num_pages = [], "", 0
    while num_pages == 0 or token:
        page = await store.call("ListBaseModels", pb.ListBaseModelsRequest(page_token=token))
        found += [model.weights_fingerprint for model in page.base_models]
        token, num_pages = page.next_page_token, num_pages + 1
        assert page.ByteSize() < 4 * 2**20
    assert num_pages > 1
    assert found == ["f", *map(str, range(12))]


async def test_a_tenant_neither_sees_nor_uses_anothers_adapters(store: StoreClient) -> None:
    version = await store.of("acme").push(adapter(), "bot")
    other = store.of("other")
    files = [pb.UploadedFile(path=name, digest=digest_of(data)) for name, data in adapter().files().items()]
    assert await other.names() == []
    for call in (
        other.resolve("bot"),
        other.resolve(f"bot@{version.digest}"),
        other.read(version.manifest.weights_digest),
        other.call("DeleteAdapter", pb.DeleteAdapterRequest(name="bot")),
        other.call("CreateVersion", pb.CreateVersionRequest(reference="bot", files=files)),
    ):
        assert isinstance(await error_of(call), errors.NotFoundError)
    assert (await store.of("acme").resolve("bot")).digest == version.digest


async def test_watching_gives_what_happened_since_and_then_what_happens(store: StoreClient) -> None:
    await store.push(adapter(), "bot")
    listing = await store.call("ListAdapters", pb.ListAdaptersRequest())
    await store.push(adapter(seed=1), "bot")
    watching = store.adapters.WatchAdapters(
        pb.WatchAdaptersRequest(from_revision=listing.revision), metadata=store.metadata
    )
    events = [await watching.read() for _ in range(2)]
    next_event = asyncio.ensure_future(watching.read())
    await store.of("other").push(adapter(), "not-for-us")
    await store.call("DeleteAdapter", pb.DeleteAdapterRequest(name="bot"))
    events.append(await asyncio.wait_for(next_event, 60))
    assert [event.kind for event in events] == [
        pb.ADAPTER_EVENT_KIND_VERSION_CREATED,
        pb.ADAPTER_EVENT_KIND_TAG_MOVED,
        pb.ADAPTER_EVENT_KIND_ADAPTER_DELETED,
    ]
    assert [event.revision for event in events] == [listing.revision + n for n in (1, 2, 3)]
    watching.cancel()


async def test_watching_from_the_listing_of_an_empty_tenant_misses_nothing(store: StoreClient) -> None:
    listing = await store.call("ListAdapters", pb.ListAdaptersRequest())
    await store.push(adapter(), "bot")
    request = pb.WatchAdaptersRequest(from_revision=listing.revision)
    watching = store.adapters.WatchAdapters(request, metadata=store.metadata, timeout=60)
    assert (listing.revision, (await watching.read()).revision) == (0, 1)
    watching.cancel()


async def test_watching_without_a_revision_gives_what_happens_once_the_stream_stands(store: StoreClient) -> None:
    await store.push(adapter(), "before")
    watching = store.adapters.WatchAdapters(pb.WatchAdaptersRequest(), metadata=store.metadata, timeout=60)
    await watching.initial_metadata()
    await store.push(adapter(), "after")
    assert (await watching.read()).adapter == "after"
    watching.cancel()


async def test_watching_from_a_revision_ahead_is_refused(store: StoreClient) -> None:
    error = await error_of(store.stream("WatchAdapters", pb.WatchAdaptersRequest(from_revision=99)))
    assert isinstance(error, errors.RevisionCompactedError)


async def test_base_models_are_listed(store: StoreClient) -> None:
    response = await store.call("ListBaseModels", pb.ListBaseModelsRequest())
    assert [model.digest for model in response.base_models] == [base_spec().digest]


async def test_all_of_it_is_there_after_a_restart(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        await store.register()
        version = await store.push(adapter(), "bot")
    async with open_store(tmp_path) as store:
        assert await store.resolve("bot") == version
        assert len(await store.read(version.manifest.weights_digest)) == version.manifest.weights_size_bytes


async def test_two_stores_never_share_a_folder(tmp_path: Path) -> None:
    async with open_store(tmp_path):
        with pytest.raises(errors.StoreUnavailableError, match="another store process"):
            async with open_store(tmp_path):
                pass
