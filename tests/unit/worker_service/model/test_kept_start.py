"""The record of a start: where it lies, and what others see of it while it is written."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hotslot.content_files import StagedFile
from worker_service.compiled_code.archive import _shipped
from worker_service.model.kept_start import KeptStart
from worker_service.model.shared_code import INDUCTOR_DIR, CodeKey
from worker_service.model.step_programs import StepPrograms
from worker_service.model.step_state import StepState


class Called(nn.Module):
    """A module that counts as compiled."""

    def __init__(self) -> None:
        super().__init__()
        self._compiled_call_impl = self._call_impl


@pytest.fixture
def programs() -> StepPrograms:
    """No program of any step."""
    step = StepState.allocate(max_tokens=1, num_slots=1, max_segments=2, max_blocks=1, device=torch.device("cpu"))
    return StepPrograms([Called()], Called(), step, 1)


@pytest.mark.parametrize("cache_dir", ["cache", "../here/cache"])
def test_a_record_is_of_the_folder_that_the_compiler_writes_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: StepPrograms, cache_dir: str
) -> None:
    """It makes its folder's path absolute, and libraries are known by theirs."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    place = KeptStart(Path(cache_dir), CodeKey({}))
    place.write(programs, {}, ())
    found = place.read()
    assert found is not None
    assert found.folder == here / "cache" / INDUCTOR_DIR


def test_a_record_that_is_written_is_in_no_archive_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: StepPrograms
) -> None:
    shipped: list[list[Path]] = []
    publish = StagedFile.publish

    def look(staged: StagedFile, target: Path, **options: Any) -> None:
        shipped.append(_shipped(tmp_path))
        publish(staged, target, **options)
        shipped.append(_shipped(tmp_path))

    monkeypatch.setattr(StagedFile, "publish", look)
    place = KeptStart(tmp_path, CodeKey({}))
    place.write(programs, {}, ())
    assert shipped == [[], [place.path]]


def test_a_worker_without_a_compiler_takes_the_record_of_any_that_fits(tmp_path: Path, programs: StepPrograms) -> None:
    key = CodeKey({"torch": "2.13", "compiler": "g++ 12"})
    KeptStart(tmp_path, key).write(programs, {"by": "12"}, ())
    found = KeptStart(tmp_path, key.opened).read()
    assert found is not None
    assert found.answers == {"by": "12"}
    assert KeptStart(tmp_path, CodeKey({"torch": "2.13", "compiler": "g++ 13"})).read() is None
    assert KeptStart(tmp_path, CodeKey({"torch": "2.12", "compiler": ""})).read() is None


def test_of_records_that_fit_the_last_is_taken_whose_libraries_are_here(tmp_path: Path, programs: StepPrograms) -> None:
    """Two compilers' libraries have one name, and an archive adds those only that are not here."""
    key, later = (CodeKey({"torch": "2.13", "compiler": name}) for name in ("g++ 12", "g++ 13"))
    KeptStart(tmp_path, key).write(programs, {"by": "12"}, ())
    place = KeptStart(tmp_path, later)
    place.write(programs, {"by": "13"}, ())
    record = json.loads(place.path.read_bytes().partition(b"\n")[2])
    content = json.dumps({**record, "libraries": {"ab/cab.so": "sha256:" + "0" * 64}}).encode()
    (tmp_path / INDUCTOR_DIR / "ab").mkdir()
    (tmp_path / INDUCTOR_DIR / "ab" / "cab.so").write_bytes(b"by 12")
    place.path.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    os.utime(KeptStart(tmp_path, key).path, ns=(1, 1))
    found = KeptStart(tmp_path, key.opened).read()
    assert found is not None
    assert found.answers == {"by": "12"}
