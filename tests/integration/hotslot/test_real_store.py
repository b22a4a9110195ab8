"""The client against a real store process."""

import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hotslot import BlockingStoreClient, ChannelOptions, RetryPolicy
from hotslot.contract.catalog import AdapterEvent, AdapterEventKind, TransferProgress, TransferStage
from hotslot.errors import (
    AdapterNotFoundError,
    EtagMismatchError,
    InvalidAdapterError,
    TagNotFoundError,
    VersionInUseError,
    VersionNotFoundError,
)
from hotslot.ids import TenantId, digest_of
from hotslot.local.children import Child
from tests.integration.hotslot.conftest import BASE, PATHS, SPEC, PeftFolder
from tests.support.stack import STORE_READY_S, Stack

pytestmark = pytest.mark.integration


def test_a_pushed_adapter_can_be_listed_resolved_and_downloaded(
    store: BlockingStoreClient, peft_folder: PeftFolder, tmp_path: Path
) -> None:
    folder = peft_folder(seed=77)
    pushed = store.push(folder, "acme/pirate:v1", labels={"team": "a"})
    assert pushed.created
    assert pushed.uploaded_bytes >= (folder / "adapter_model.safetensors").stat().st_size
    (listed,) = store.list_adapters(labels={"team": "a"})
    assert (listed.name, [tag.name for tag in listed.tags]) == ("acme/pirate", ["v1"])
    version = store.resolve("acme/pirate:v1").version
    assert version == pushed.version
    assert [module.path for module in version.modules] == PATHS
    assert {(module.rank, module.scaling) for module in version.modules} == {(4, 2.0)}
    assert store.download_blob(version.weights_digest, tmp_path / "weights") == version.weights_size_bytes
    assert digest_of((tmp_path / "weights").read_bytes()) == version.weights_digest


def test_the_same_content_is_the_same_version(store: BlockingStoreClient, peft_folder: PeftFolder) -> None:
    first = store.push(peft_folder("one"), "pirate")
    again = store.push(peft_folder("two"), "pirate")
    assert not again.created
    assert again.version.digest == first.version.digest
    assert [version.digest for version in store.list_versions("pirate")] == [first.version.digest]


def test_tags_move_only_from_the_state_that_was_seen(store: BlockingStoreClient, peft_folder: PeftFolder) -> None:
    one = store.push(peft_folder("one", seed=1), "pirate").version
    two = store.push(peft_folder("two", seed=2), "pirate").version
    tag = store.set_tag("pirate", "prod", one.digest)
    moved = store.set_tag("pirate", "prod", two.digest, etag=tag.etag)
    assert store.resolve("pirate:prod").version.digest == two.digest
    with pytest.raises(EtagMismatchError):
        store.set_tag("pirate", "prod", one.digest, etag=tag.etag)
    store.delete_tag("pirate", "prod", etag=moved.etag)
    with pytest.raises(TagNotFoundError):
        store.resolve("pirate:prod")
    assert store.resolve(f"pirate@{one.digest}").version.digest == one.digest


def test_what_is_deleted_is_gone_and_an_adapter_comes_back(store: BlockingStoreClient, peft_folder: PeftFolder) -> None:
    version = store.push(peft_folder(), "pirate").version
    with pytest.raises(VersionInUseError):
        store.delete_version("pirate", version.digest)
    assert store.delete_adapter("pirate").purge_time is not None
    with pytest.raises(AdapterNotFoundError):
        store.get("pirate")
    assert store.undelete_adapter("pirate").name == "pirate"
    store.delete_version("pirate", version.digest, force=True)
    with pytest.raises(VersionNotFoundError):
        store.resolve(f"pirate@{version.digest}")


def test_a_refused_adapter_is_invisible_and_all_its_violations_are_told(
    store: BlockingStoreClient, peft_folder: PeftFolder
) -> None:
    folder = peft_folder(use_dora=True, auto_mapping={"parent_library": "os"}, target_modules=["nowhere"])
    report = store.validate(folder)
    assert not report.valid
    assert len(report.violations) >= 2
    with pytest.raises(InvalidAdapterError) as raised:
        store.push(folder, "bad")
    assert raised.value.violations == report.violations
    with pytest.raises(AdapterNotFoundError):
        store.get("bad")


@pytest.mark.parametrize("base_model", ["", BASE])
def test_a_checkpoint_without_a_config_has_its_weights_checked(
    store: BlockingStoreClient, peft_folder: PeftFolder, base_model: str
) -> None:
    folder = peft_folder()
    (folder / "adapter_config.json").unlink()
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = np.nan
    save_file(tensors, folder / "adapter_model.safetensors")
    report = store.validate(folder, base_model=base_model)
    assert not report.valid
    assert [violation.code for violation in report.violations] == ["MISSING_FILE", "NOT_FINITE"]


def test_another_tenant_sees_nothing(store: BlockingStoreClient, store_process: Child, peft_folder: PeftFolder) -> None:
    version = store.push(peft_folder(), "pirate").version
    with BlockingStoreClient(store_process.spec.endpoint, ChannelOptions(tenant=TenantId("stranger"))) as stranger:
        assert list(stranger.list_adapters()) == []
        for reference in ("pirate", f"pirate@{version.digest}"):
            with pytest.raises(AdapterNotFoundError):
                stranger.resolve(reference)
        assert stranger.push(peft_folder("again"), "own", base_model=BASE).uploaded_bytes > 0


def test_a_watch_sees_what_happens(store: BlockingStoreClient, peft_folder: PeftFolder) -> None:
    folders = [peft_folder("one", seed=1), peft_folder("two", seed=2)]
    store.push(folders[0], "pirate")
    revision = store.resolve("pirate").revision
    seen: list[AdapterEvent] = []
    with_tag = threading.Event()

    def watch() -> None:
        for event in store.watch(revision):
            seen.append(event)
            if event.kind is AdapterEventKind.TAG_MOVED:
                with_tag.set()
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    version = store.push(folders[1], "pirate").version
    assert with_tag.wait(60)
    watcher.join(60)
    assert [event.kind for event in seen] == [AdapterEventKind.VERSION_CREATED, AdapterEventKind.TAG_MOVED]
    assert {event.digest for event in seen} == {version.digest}


@pytest.mark.chaos
def test_a_push_survives_the_death_of_the_store(tmp_path: Path, peft_folder: PeftFolder) -> None:
    """The store is killed in the middle of an upload and started again; the push goes on as if nothing was."""
    folder = peft_folder(rank=2048)
    (tmp_path / "stack").mkdir()
    with Stack(tmp_path / "stack") as stack:
        process = stack.start_store(max_rank="4096")
        killed = False

        def kill_in_the_middle(progress: TransferProgress) -> None:
            nonlocal killed
            if progress.stage is TransferStage.UPLOADING and progress.done_bytes > 2_000_000 and not killed:
                killed = True
                stack.start_again(process).wait_ready(STORE_READY_S)

        retry = RetryPolicy(max_stalls=20, max_delay_s=0.5)
        with BlockingStoreClient(process.spec.endpoint, retry=retry) as store:
            store.register_base_model(SPEC)
            result = store.push(folder, "pirate", on_progress=kill_in_the_middle)
            assert killed
            assert store.resolve("pirate").version == result.version
            path = tmp_path / "weights"
            store.download_blob(result.version.weights_digest, path)
