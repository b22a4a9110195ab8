"""A folder is fetched as one save left it, or not at all."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hotslot.errors import HotslotError, SourceChangedError, SourceForbiddenError
from store_service.admission.admit import Checkpoint
from store_service.sources import directory
from store_service.sources.directory import DirectorySource
from tests.support.checkpoints import Draft, adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OLD, NEW = adapter(seed=0), adapter(seed=1)
LONG_AGO_S = 1_000_000_000


def save(draft: Draft, folder: Path) -> None:
    draft.write(folder)


def write_the_weights_in_place(draft: Draft, folder: Path) -> None:
    with (folder / WEIGHTS).open("r+b") as file:
        file.write(draft.files()[WEIGHTS])


def replace_the_config(draft: Draft, folder: Path) -> None:
    (folder / "new").write_bytes(draft.files()[CONFIG])
    (folder / "new").replace(folder / CONFIG)


def remove_the_weights(draft: Draft, folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def add_a_file(draft: Draft, folder: Path) -> None:
    (folder / "adapters.safetensors").write_bytes(draft.files()[WEIGHTS])


def fetch(root: Path, change: Callable[[int], None]) -> Checkpoint:
    """Fetch the old save; `change` is told how many blocks were copied."""
    OLD.write(root / "bot")
    for path in (root / "bot").iterdir():
        os.utime(path, (LONG_AGO_S, LONG_AGO_S))  # so that a change within the same tick of the clock shows
    content = DirectorySource(str(root / "bot"), (root,), 1 << 30).resolve()
    (root / "fetched").mkdir()
    num_blocks = 0

    def report(done_bytes: int) -> None:
        nonlocal num_blocks
        num_blocks += 1
        change(num_blocks)

    return content.fetch(root / "fetched", report, threading.Event())


@pytest.mark.parametrize("after_blocks", [1, 6])
@pytest.mark.parametrize(
    "change", [save, write_the_weights_in_place, replace_the_config, remove_the_weights, add_a_file]
)
def test_a_change_while_files_are_copied_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Draft, Path], None], after_blocks: int
) -> None:
    monkeypatch.setattr(directory, "COPY_BYTES", 256)

    def change_once(num_blocks: int) -> None:
        if num_blocks == after_blocks:
            change(NEW, tmp_path / "bot")

    with pytest.raises(SourceChangedError, match="changed while it was read"):
        fetch(tmp_path, change_once)


def test_what_nobody_changes_is_copied_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "COPY_BYTES", 256)
    blocks: list[int] = []
    checkpoint = fetch(tmp_path, blocks.append)
    assert {name: path.read_bytes() for name, path in checkpoint.files.items()} == OLD.files()
    assert len(blocks) > 6, "the changes of the other test come before the end"


def linked_elsewhere(root: Path, name: str) -> None:
    """The folder becomes a link out of the roots, as soon as it was looked at."""
    (root / name).rename(root / "away")
    (root / name).symlink_to(root.parent / "secret")


@pytest.mark.parametrize("after_blocks", [1, 6])
def test_a_folder_that_becomes_a_link_leads_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after_blocks: int
) -> None:
    monkeypatch.setattr(directory, "COPY_BYTES", 256)
    root = tmp_path / "root"
    root.mkdir()
    NEW.write(tmp_path / "secret")

    def change_once(num_blocks: int) -> None:
        if num_blocks == after_blocks:
            linked_elsewhere(root, "bot")

    with pytest.raises(SourceChangedError):
        fetch(root, change_once)
    copied = [path.read_bytes() for path in (root / "fetched").iterdir()]
    assert not set(copied) & set(NEW.files().values()) - set(OLD.files().values())


def test_a_folder_that_is_swapped_before_it_is_fetched_is_not_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    NEW.write(tmp_path / "secret")
    OLD.write(root / "bot")
    content = DirectorySource(str(root / "bot"), (root,), 1 << 30).resolve()
    linked_elsewhere(root, "bot")
    (root / "fetched").mkdir()
    with pytest.raises(SourceForbiddenError):
        content.fetch(root / "fetched", lambda done_bytes: None, threading.Event())
    assert list((root / "fetched").iterdir()) == []


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_link_tells_nothing_of_what_is_outside(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    OLD.write(root / "bot")
    (tmp_path / "there").write_bytes(b"x" * 12345)
    told = []
    for target in ("there", "not-there"):
        (root / "bot" / name).unlink()
        (root / "bot" / name).symlink_to(tmp_path / target)
        with pytest.raises(SourceForbiddenError) as refused:
            DirectorySource(str(root / "bot"), (root,), 1 << 30).resolve()
        told.append(refused.value.message)
    assert told[0] == told[1]


@pytest.mark.parametrize("path", ["/\0", "/a\0/../b", "", "bot", "./bot", "~/bot", "/" + "a/" * 5000, "/" + "a" * 300])
def test_a_path_that_is_none_is_a_typed_refusal(tmp_path: Path, path: str) -> None:
    with pytest.raises(HotslotError):
        DirectorySource(path, (tmp_path,), 1 << 30).resolve()
