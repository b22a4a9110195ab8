"""A staged file, through any sequence of writes, failures and resumptions, is whole under its name or not there."""

import os
import tempfile
import threading
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotslot import content_files
from hotslot.content_files import BLOCK_BYTES, READ_ONLY, StagedFile, digest_of_file, write_file
from hotslot.errors import DigestMismatchError
from hotslot.ids import digest_of
from tests.support.content_places import nearly_full_disk

STEPS = st.one_of(
    st.tuples(st.just("write"), st.binary(max_size=300)),
    st.tuples(st.just("fail"), st.binary(min_size=1, max_size=300)),
    st.tuples(st.just("restart"), st.none()),
    st.tuples(st.just("resume"), st.none()),
)


@given(steps=st.lists(STEPS, max_size=8), ending=st.sampled_from(["publish", "wrong", "short", "discard"]))
@settings(max_examples=150, deadline=None)
def test_a_staged_file_has_what_was_written_and_is_published_whole_or_not_at_all(
    steps: list[tuple[str, bytes | None]], ending: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stage, target = Path(folder) / "stage", Path(folder) / "sub" / "target"
        staged, model = StagedFile(stage, resumes=True), b""
        for step, data in steps:
            if step == "write" and data is not None:
                staged.write(data)
                model += data
            elif step == "fail" and data is not None:
                with nearly_full_disk(len(model) + len(data) // 2), pytest.raises(OSError, match="File too large"):
                    staged.write(data)
            elif step == "restart":
                staged.restart()
                model = b""
            else:
                staged.keep()
                staged = StagedFile(stage, resumes=True)
            assert (staged.size_bytes, staged.digest(), stage.read_bytes()) == (len(model), digest_of(model), model)
        if ending == "publish":
            staged.verify(digest_of(model), len(model), "content")
            staged.publish(target, mode=READ_ONLY)
            assert target.read_bytes() == model
            assert target.stat().st_mode & 0o777 == READ_ONLY
        elif ending != "discard":
            wrong = (digest_of(model + b"x"), len(model)) if ending == "wrong" else (digest_of(model), len(model) + 1)
            with pytest.raises(DigestMismatchError):
                staged.verify(*wrong, "content")
            assert staged.size_bytes == 0
        staged.discard()
        assert not stage.exists()
        assert target.exists() == (ending == "publish")


@pytest.mark.parametrize("reserved", [0, 100, 5_000])
def test_what_was_reserved_and_not_written_is_no_part_of_the_file(tmp_path: Path, reserved: int) -> None:
    staged = StagedFile(tmp_path / "stage")
    staged.reserve(reserved)
    staged.write(b"content")
    staged.publish(tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"content"


def test_a_file_that_is_written_anew_is_the_old_one_until_it_is_whole(tmp_path: Path) -> None:
    class Broken:
        def read(self, size: int = -1, /) -> bytes:
            raise OSError("broken")

    path = tmp_path / "folder" / "file"
    data = bytes(BLOCK_BYTES + 7)
    assert write_file(path, BytesIO(data)) == (digest_of(data), len(data))
    with pytest.raises(OSError, match="broken"):
        write_file(path, Broken())
    with path.open("rb") as file:
        assert digest_of_file(file) == digest_of(data)
    assert list(path.parent.iterdir()) == [path]


def test_a_new_folder_is_made_while_the_bytes_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=60)
    make, sync = content_files.make_directory, os.fsync
    synced: list[str] = []

    def making(path: Path) -> None:
        if path.name == "ab":
            both.wait()
        make(path)

    def syncing(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        if path.is_file():
            both.wait()
        synced.append(path.name)
        sync(descriptor)

    monkeypatch.setattr(content_files, "make_directory", making)
    monkeypatch.setattr(os, "fsync", syncing)
    staged = StagedFile(tmp_path / "stage")
    staged.write(b"bytes")
    staged.publish(tmp_path / "ab" / "blob")
    assert sorted(synced[:2]) == sorted(["stage", tmp_path.name])
    assert synced[2:] == ["ab"], "its name is durable last"
    assert (tmp_path / "ab" / "blob").read_bytes() == b"bytes"


def test_a_folder_that_cannot_be_made_publishes_nothing(tmp_path: Path) -> None:
    (tmp_path / "ab").write_bytes(b"a file")
    staged = StagedFile(tmp_path / "stage")
    staged.write(b"bytes")
    with pytest.raises(OSError, match="ab"):
        staged.publish(tmp_path / "ab" / "blob")
    staged.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["ab"]
