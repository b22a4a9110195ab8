"""Libraries that a killed linker left: whatever their length, they are dropped, and whole ones stay."""

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

from worker_service.model.broken_code import SETTLED_S, drop_broken_code, is_whole


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("library")
    (folder / "a.cpp").write_text('extern "C" int seven() { return 7; }\n')
    subprocess.run(["g++", "-shared", "-fPIC", "-o", "a.so", "a.cpp"], cwd=folder, check=True, timeout=60)
    return (folder / "a.so").read_bytes()


def written(path: Path, content: bytes, age_s: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    then_s = path.stat().st_mtime - age_s
    os.utime(path, (then_s, then_s))
    return path


def test_every_beginning_of_a_library_is_broken_and_the_whole_is_not(tmp_path: Path, library: bytes) -> None:
    path = tmp_path / "a.so"
    for size in [*range(200), *range(200, len(library), 97), len(library) - 1]:
        path.write_bytes(library[:size])
        assert not is_whole(path), size
    path.write_bytes(b"\0" * len(library))
    assert not is_whole(path), "room that was reserved and never written"
    path.write_bytes(library)
    assert is_whole(path)
    assert ctypes.CDLL(str(path)).seven() == 7


def test_what_is_broken_and_nobodys_work_is_dropped(tmp_path: Path, library: bytes) -> None:
    whole = written(tmp_path / "ab" / "whole.so", library, 2 * SETTLED_S)
    underway = written(tmp_path / "ab" / "underway.so", library[:500], 0)
    source = written(tmp_path / "ab" / "source.cpp", b"", 2 * SETTLED_S)
    broken = [
        written(tmp_path / "cd" / "cut.so", library[:500], 2 * SETTLED_S),
        written(tmp_path / "cd" / "empty.so", b"", 2 * SETTLED_S),
    ]
    assert drop_broken_code(tmp_path) == tuple(broken)
    assert [path for path in (whole, underway, source, *broken) if path.exists()] == [whole, underway, source]
    assert drop_broken_code(tmp_path / "absent") == ()
