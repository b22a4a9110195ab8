"""PublishVersion over real sockets: files that come with the call, what is refused, and what retention leaves."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import create_engine, text

from hotslot.errors import (
    DigestMismatchError,
    HotslotError,
    InvalidAdapterError,
    InvalidReferenceError,
    InvalidRequestError,
    QuotaExceededError,
    VersionNotFoundError,
)
from hotslot.ids import digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.rpc.status import from_rpc_error
from store_service import pruner
from tests.support.checkpoints import Draft, adapter
from tests.support.store import StoreClient, error_of, open_store
from tests.support.waiting import until_async

NUM_PUBLICATIONS = 300


def messages_of(draft: Draft, reference: str, chunk_bytes: int = 1000, **fields: Any) -> list[pb.PublishVersionRequest]:
    """The messages of one publication; fields are those of CreateVersionRequest."""
    files = draft.files()
    data = b"".join(files.values())
    messages = [
        pb.PublishVersionRequest(
            version=pb.CreateVersionRequest(reference=reference, **fields),
            files=[pb.StreamedFile(path=path, size_bytes=len(content)) for path, content in files.items()],
        )
    ]
    chunks = (data[position : position + chunk_bytes] for position in range(0, len(data), chunk_bytes))
    messages.extend(pb.PublishVersionRequest(data=chunk) for chunk in chunks)
    messages[-1].finish, messages[-1].data_digest = True, digest_of(data)
    return messages


async def send(store: StoreClient, messages: list[pb.PublishVersionRequest]) -> pb.PublishVersionResponse:
    async def each() -> AsyncIterator[pb.PublishVersionRequest]:
        for message in messages:
            yield message

    try:
        return await store.adapters.PublishVersion(each(), metadata=store.metadata, timeout=120)  # type: ignore[no-any-return]
    except grpc.aio.AioRpcError as exc:
        raise from_rpc_error(exc) from exc


async def test_a_publication_is_the_version_that_an_upload_of_the_same_files_would_be(
    store: StoreClient, tmp_path: Path
) -> None:
    draft = adapter()
    fields: dict[str, Any] = {"annotations": {"step": "40"}, "tags": ["best", "v1"], "labels": {"team": "x"}}
    response = await send(store, messages_of(draft, "bot:train", **fields))
    published = response.published
    assert published.created
    assert sorted(published.version.tags) == ["best", "train", "v1"]
    assert dict(published.version.annotations) == {"step": "40"}
    assert (await store.push(draft, "bot:uploaded")).digest == published.version.digest
    version = await store.resolve("bot:best")
    assert dict(version.annotations) == {"step": "40"}
    data = await store.read(version.manifest.weights_digest)
    assert "sha256:" + hashlib.sha256(data).hexdigest() == version.manifest.weights_digest
    assert list((tmp_path / "data" / "arrivals").iterdir()) == []
    listed = await store.call("ListVersions", pb.ListVersionsRequest(adapter="bot"))
    assert [dict(found.annotations) for found in listed.versions] == [{"step": "40"}]


async def test_one_message_is_enough_for_a_small_adapter(store: StoreClient) -> None:
    head, *rest = messages_of(adapter(), "bot", chunk_bytes=2**24)
    head.MergeFrom(rest[0])
    assert (await send(store, [head])).published.created


async def test_every_violation_comes_back_and_nothing_is_published(store: StoreClient) -> None:
    draft = adapter()
    for name in sorted(draft.tensors)[:2]:
        draft.tensors[name] = draft.tensors[name] * float("nan")
    error = await error_of(send(store, messages_of(draft, "bot")))
    assert isinstance(error, InvalidAdapterError)
    assert {violation.code for violation in error.violations} == {"NOT_FINITE"}
    assert len(error.violations) == 2
    assert await store.names() == []


def spoiled(messages: list[pb.PublishVersionRequest], how: str) -> list[pb.PublishVersionRequest]:
    first, last = messages[0], messages[-1]
    match how:
        case "other bytes":
            messages[1].data = bytes(len(messages[1].data))
        case "too few bytes":
            last.data = last.data[:-1]
        case "too many bytes":
            last.data += b"x"
        case "no files":
            del first.files[:]
        case "a file twice":
            first.files.append(first.files[0])
        case "a file without bytes":
            first.files[0].size_bytes = 0
        case "files of CreateVersion":
            first.version.files.add(path="x", digest=digest_of(b""))
        case "no digest":
            last.data_digest = ""
        case "a tag that is none":
            first.version.tags.append("a b")
        case "too long an annotation":
            first.version.annotations["key"] = "x" * 513
        case "keep below 0":
            first.version.keep_versions = -1
        case "more than the store takes":
            first.files[0].size_bytes = 2**40
        case "no message":
            return []
    return messages


@pytest.mark.parametrize(
    ("how", "kind", "subject"),
    [
        ("other bytes", DigestMismatchError, "files"),
        ("too few bytes", InvalidRequestError, "data"),
        ("too many bytes", InvalidRequestError, "data"),
        ("no files", InvalidRequestError, "files"),
        ("a file twice", InvalidRequestError, "files[2].path"),
        ("a file without bytes", InvalidRequestError, "files[0].size_bytes"),
        ("files of CreateVersion", InvalidRequestError, "version.files"),
        ("no digest", InvalidRequestError, "data_digest"),
        ("a tag that is none", InvalidReferenceError, "a b"),
        ("too long an annotation", InvalidRequestError, "annotations"),
        ("keep below 0", InvalidRequestError, "keep_versions"),
        ("more than the store takes", QuotaExceededError, "bytes"),
        ("no message", InvalidRequestError, "version"),
    ],
)
async def test_what_is_wrong_is_refused_by_name_and_leaves_nothing(
    store: StoreClient, tmp_path: Path, how: str, kind: type[HotslotError], subject: str
) -> None:
    error = await error_of(send(store, spoiled(messages_of(adapter(), "bot"), how)))
    assert type(error) is kind
    assert subject in str(error)
    assert await store.names() == []
    assert list((tmp_path / "data" / "arrivals").iterdir()) == []


async def test_a_stream_that_breaks_leaves_nothing(store: StoreClient, tmp_path: Path) -> None:
    call = store.adapters.PublishVersion(metadata=store.metadata)
    for message in messages_of(adapter(), "bot")[:3]:
        await call.write(message)
    arrivals = "*/arrivals/*"  # of whichever store it is
    await until_async(lambda: asyncio.sleep(0, any(tmp_path.glob(arrivals))))
    call.cancel()
    await until_async(lambda: asyncio.sleep(0, not any(tmp_path.glob(arrivals))))
    assert await store.names() == []


@pytest.mark.parametrize("moment_s", [0.0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032])
async def test_a_stream_that_breaks_at_any_moment_leaves_nothing(
    store: StoreClient, tmp_path: Path, moment_s: float
) -> None:
    arrivals = tmp_path / "data" / "arrivals"
    for _ in range(5):
        call = store.adapters.PublishVersion(metadata=store.metadata)
        for message in messages_of(adapter(), "bot")[:3]:
            await call.write(message)
        await asyncio.sleep(moment_s)
        call.cancel()
    await asyncio.sleep(0.1)
    await until_async(lambda: asyncio.sleep(0, not any(arrivals.iterdir())))


def rows(folder: Path) -> dict[str, int]:
    engine = create_engine(f"sqlite:///{folder / 'catalog.sqlite3'}")
    with engine.connect() as connection:
        names = ("versions", "tags", "labels", "adapter_policies", "released_weights", "adapters")
        return {name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() for name in names}


async def test_a_training_that_publishes_all_day_keeps_what_retention_says_and_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruner, "PAUSE_S", 0.05)
    folder = tmp_path / "data"
    async with open_store(folder, retention_grace_s=0.3, collect_every_s=0.5) as store:
        await store.register()
        most_files = 0
        for number in range(NUM_PUBLICATIONS):
            tags = ["first"] if number == 0 else []
            annotations = {"step": str(number)}
            draft = adapter(seed=number + 1)
            await send(
                store, messages_of(draft, "bot:train", 2**20, tags=tags, annotations=annotations, keep_versions=3)
            )
            most_files = max(most_files, sum(path.is_file() for path in (folder / "blobs").rglob("*")))

        async def is_settled() -> bool:
            found = rows(folder)
            return found["versions"] == 4 and found["released_weights"] == 0

        await until_async(is_settled)
        assert rows(folder) == {
            "versions": 4, "tags": 2, "labels": 0, "adapter_policies": 1, "released_weights": 0, "adapters": 1,
        }  # fmt: skip
        blobs = [path for path in (folder / "blobs").rglob("*") if path.is_file()]
        assert len(blobs) == 4
        assert most_files < NUM_PUBLICATIONS / 2, "they went while it went on, not in the end"
        assert [
            path for name in ("uploads", "arrivals", "stages") for path in (folder / name).rglob("*") if path.is_file()
        ] == []
        first, train = await store.resolve("bot:first"), await store.resolve("bot:train")
        assert (first.annotations["step"], train.annotations["step"]) == ("0", str(NUM_PUBLICATIONS - 1))
        for version in (first, train):
            data = await store.read(version.manifest.weights_digest)
            assert digest_of(data) == version.manifest.weights_digest


async def test_a_version_that_a_worker_asks_for_by_its_digest_survives_the_publications_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruner, "PAUSE_S", 0.05)
    async with open_store(tmp_path / "data", retention_grace_s=3.0, collect_every_s=0.5) as store:
        await store.register()
        held = (await send(store, messages_of(adapter(seed=1), "bot", keep_versions=1))).published.version
        loop = asyncio.get_running_loop()
        until_s = loop.time() + 5.0
        number = 1
        while loop.time() < until_s:
            number += 1
            await send(store, messages_of(adapter(seed=number), "bot"))
            assert (await store.resolve(f"bot@{held.digest}")).digest == held.digest
            await asyncio.sleep(0.2)
        assert digest_of(await store.read(held.manifest.weights_digest)) == held.manifest.weights_digest

        async def is_gone() -> bool:
            listed = await store.call("ListVersions", pb.ListVersionsRequest(adapter="bot"))
            return held.digest not in {version.digest for version in listed.versions}

        await until_async(is_gone)
        assert isinstance(await error_of(store.resolve(f"bot@{held.digest}")), VersionNotFoundError)


async def test_a_version_that_a_worker_keeps_by_its_digest_survives_a_long_outage_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruner, "PAUSE_S", 0.05)
    async with open_store(tmp_path / "data", retention_grace_s=4.0) as store:
        await store.register()
        held = (await send(store, messages_of(adapter(seed=1), "bot", keep_versions=1))).published.version
        await send(store, messages_of(adapter(seed=2), "bot"))
        assert (await store.resolve(f"bot@{held.digest}")).digest == held.digest
    await asyncio.sleep(4.1)
    async with open_store(tmp_path / "data", retention_grace_s=4.0) as store:
        await send(store, messages_of(adapter(seed=3), "bot"))
        await asyncio.sleep(0.7)  # as long as a worker may take to say it again
        assert (await store.resolve(f"bot@{held.digest}")).digest == held.digest


async def test_prune_tells_first_and_then_removes(tmp_path: Path) -> None:
    async with open_store(tmp_path / "data", retention_grace_s=0.0) as store:
        await store.register()
        made = [(await send(store, messages_of(adapter(seed=n), "bot"))).published.version.digest for n in range(1, 5)]
        request = pb.PruneVersionsRequest(adapter="bot", keep_versions=2, dry_run=True)
        told = await store.call("PruneVersions", request)
        assert [version.digest for version in told.versions] == [made[1], made[0]]
        assert (told.num_kept, told.num_waiting, told.more, told.revision) == (2, 0, False, 0)
        listed = await store.call("ListVersions", pb.ListVersionsRequest(adapter="bot"))
        assert len(listed.versions) == 4
        request.dry_run = False
        assert (await store.call("PruneVersions", request)).revision > 0
        listed = await store.call("ListVersions", pb.ListVersionsRequest(adapter="bot"))
        assert [version.digest for version in listed.versions] == [made[3], made[2]]
        for wrong in (
            pb.PruneVersionsRequest(keep_versions=2),
            pb.PruneVersionsRequest(adapter="bot", keep_versions=-1),
        ):
            assert isinstance(await error_of(store.call("PruneVersions", wrong)), InvalidRequestError)
