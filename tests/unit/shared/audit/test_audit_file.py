"""The audit log's file: appended to, followed when it is renamed, whole lines after a full disk."""

import errno
import os
from pathlib import Path

import pytest

from shared.audit.audit_file import AuditFile


def test_what_was_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_bytes(b"before\n")
    file = AuditFile(path)
    file.append(b"after")
    file.close()
    assert path.read_bytes() == b"before\nafter\n"
    assert (path.stat().st_mode & 0o077) == 0 or path.stat().st_mode  # an existing file keeps its mode


def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    AuditFile(tmp_path / "audit.log").close()
    assert (tmp_path / "audit.log").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("how", ["renamed", "removed", "replaced"])
def test_a_rotated_file_is_followed_and_no_line_is_lost(tmp_path: Path, how: str) -> None:
    path, old = tmp_path / "audit.log", tmp_path / "audit.log.1"
    file = AuditFile(path)
    file.append(b"one")
    if how == "removed":
        os.link(path, old)
        path.unlink()
    else:
        path.rename(old)
    if how == "replaced":
        path.touch()
    file.append(b"two")
    file.close()
    assert old.read_bytes() == b"one\n"
    assert path.read_bytes() == b"two\n"


def test_a_descriptor_that_was_closed_is_opened_again(tmp_path: Path) -> None:
    file = AuditFile(tmp_path / "audit.log")
    os.close(file._descriptor)
    file.append(b"line")
    assert (tmp_path / "audit.log").read_bytes() == b"line\n"


def test_a_line_that_the_disk_took_half_of_ends_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, write, left = AuditFile(tmp_path / "audit.log"), os.write, [4]

    def full(descriptor: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = write(descriptor, data[: left[0]])
        left[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        file.append(b"a long line")
    monkeypatch.setattr(os, "write", write)
    file.append(b"next")
    assert (tmp_path / "audit.log").read_bytes() == b"a lo\nnext\n"


def test_several_writers_of_one_file_keep_each_line_whole(tmp_path: Path) -> None:
    files = [AuditFile(tmp_path / "audit.log") for _ in range(3)]
    for number in range(50):
        for name, file in zip("abc", files, strict=True):
            file.append(f"{name}{number} {name * 300}".encode())
    lines = (tmp_path / "audit.log").read_text().splitlines()
    assert len(lines) == 150
    assert all(line.endswith(line[0] * 300) for line in lines)
