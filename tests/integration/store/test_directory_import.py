"""Imports from folders over real sockets: what is allowed, shared, followed and cleaned up."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hotslot import errors
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from tests.support.checkpoints import adapter
from tests.support.store import StoreClient, error_of


def request_for(path: Path | str, reference: str = "bot", base_model: str = "") -> pb.ImportAdapterRequest:
    directory = pb.DirectorySource(path=str(path))
    return pb.ImportAdapterRequest(reference=reference, directory=directory, base_model=base_model)


@pytest.fixture
def imports(tmp_path: Path) -> Path:
    folder = tmp_path / "imports"
    folder.mkdir()
    return folder


async def test_an_import_streams_progress_and_then_the_version(store: StoreClient, imports: Path) -> None:
    adapter().write(imports / "bot")
    messages = await store.stream("ImportAdapter", request_for(imports / "bot"))
    assert [message.WhichOneof("event") for message in messages][-1] == "version"
    assert all(message.WhichOneof("event") == "progress" for message in messages[:-1])
    version = await store.resolve("bot")
    assert version == messages[-1].version
    assert version.source == f"dir:{imports / 'bot'}"
    assert version.digest == (await store.push(adapter(), "pushed")).digest


async def test_an_import_leaves_nothing_behind(store: StoreClient, imports: Path, tmp_path: Path) -> None:
    adapter().write(imports / "bot")
    await store.stream("ImportAdapter", request_for(imports / "bot"))
    assert list((tmp_path / "data" / "imports").iterdir()) == []
    assert list((tmp_path / "data" / "stages").iterdir()) == []


async def test_importers_of_the_same_share_one_import(store: StoreClient, imports: Path) -> None:
    adapter().write(imports / "bot")
    results = await asyncio.gather(*(store.stream("ImportAdapter", request_for(imports / "bot")) for _ in range(50)))
    assert len({messages[-1].version.digest for messages in results}) == 1
    events = await store.call("ListAdapters", pb.ListAdaptersRequest())
    assert events.revision == 2


def link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


def namesake(root: Path, imports: Path) -> Path:
    adapter().write(root / "imports2")
    return root / "imports2"


ESCAPES: dict[str, Callable[[Path, Path], Path | str]] = {
    "outside": lambda root, imports: root / "secret",
    "dots": lambda root, imports: f"{imports}/../secret",
    "a linked folder": lambda root, imports: link(imports / "link", root / "secret"),
    "relative": lambda root, imports: "imports",
    "a folder whose name begins like a root's": namesake,
    "not there, outside": lambda root, imports: root / "nothing",
}


@pytest.mark.parametrize("escape", ESCAPES)
async def test_nothing_outside_of_the_roots_is_read(
    store: StoreClient, imports: Path, tmp_path: Path, escape: str
) -> None:
    adapter().write(tmp_path / "secret")
    path = ESCAPES[escape](tmp_path, imports)
    error = await error_of(store.stream("ImportAdapter", request_for(path)))
    assert isinstance(error, errors.SourceForbiddenError)
    assert await store.names() == []


async def test_a_linked_file_that_leads_outside_is_not_read(store: StoreClient, imports: Path, tmp_path: Path) -> None:
    adapter().write(tmp_path / "secret")
    adapter().write(imports / "bot")
    (imports / "bot" / "adapter_model.safetensors").unlink()
    (imports / "bot" / "adapter_model.safetensors").symlink_to(tmp_path / "secret" / "adapter_model.safetensors")
    error = await error_of(store.stream("ImportAdapter", request_for(imports / "bot")))
    assert isinstance(error, errors.SourceForbiddenError)


async def test_a_linked_file_inside_of_the_roots_is_read(store: StoreClient, imports: Path) -> None:
    adapter().write(imports / "blobs")
    (imports / "bot").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (imports / "bot" / name).symlink_to(imports / "blobs" / name)
    await store.stream("ImportAdapter", request_for(imports / "bot"))
    assert await store.names() == ["bot"]


async def test_a_pipe_does_not_stop_the_store(store: StoreClient, imports: Path) -> None:
    adapter().write(imports / "bot")
    (imports / "bot" / "adapter_model.safetensors").unlink()
    os.mkfifo(imports / "bot" / "adapter_model.safetensors")
    error = await error_of(store.stream("ImportAdapter", request_for(imports / "bot")))
    assert isinstance(error, errors.InvalidAdapterError | errors.SourceForbiddenError)


async def test_a_folder_that_is_not_there_or_empty_is_not_found(store: StoreClient, imports: Path) -> None:
    (imports / "empty").mkdir()
    for name in ("nothing", "empty"):
        error = await error_of(store.stream("ImportAdapter", request_for(imports / name)))
        assert isinstance(error, errors.SourceNotFoundError)


async def test_a_folder_that_appears_is_found_at_once(store: StoreClient, imports: Path) -> None:
    await error_of(store.stream("ImportAdapter", request_for(imports / "bot")))
    adapter().write(imports / "bot")
    assert (await store.import_(request_for(imports / "bot"))).adapter == "bot"


async def test_a_folder_that_was_refused_is_taken_when_it_was_mended(store: StoreClient, imports: Path) -> None:
    draft = adapter()
    draft.config["r"] = 3
    draft.write(imports / "bot")
    assert isinstance(await error_of(store.import_(request_for(imports / "bot"))), errors.InvalidAdapterError)
    adapter().write(imports / "bot")
    assert (await store.import_(request_for(imports / "bot"))).adapter == "bot"


async def test_a_file_that_cannot_be_read_is_forbidden(store: StoreClient, imports: Path) -> None:
    adapter().write(imports / "bot")
    (imports / "bot" / "adapter_config.json").unlink()
    (imports / "bot" / "adapter_config.json").symlink_to("adapter_config.json")
    error = await error_of(store.import_(request_for(imports / "bot")))
    assert isinstance(error, errors.SourceForbiddenError)


async def test_a_pickle_is_refused_and_never_opened(store: StoreClient, imports: Path) -> None:
    draft = adapter()
    draft.without.add("adapter_model.safetensors")
    draft.write(imports / "bot")
    os.mkfifo(imports / "bot" / "adapter_model.bin")
    error = await error_of(store.stream("ImportAdapter", request_for(imports / "bot")))
    assert isinstance(error, errors.InvalidAdapterError)
    assert "UNSUPPORTED_PICKLE" in {violation.code for violation in error.violations}


async def test_an_import_without_a_source_is_refused(store: StoreClient) -> None:
    error = await error_of(store.stream("ImportAdapter", pb.ImportAdapterRequest(reference="bot")))
    assert isinstance(error, errors.InvalidRequestError)
