"""Shared libraries in the compiler's cache that were never finished, since the process that linked them was killed.

The compiler takes what is in its cache for whole: one such file would fail every start that needs it.
"""

import struct
import time
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

SETTLED_S = 30.0
"""A linker writes a library within a second; one that has not changed for so long is nobody's work any more."""
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_MAGIC = b"\x7fELF"


def drop_broken_code(folder: Path) -> tuple[Path, ...]:
    """Remove the libraries below a folder that are shorter than their headers say; they are compiled again."""
    before_s = time.time() - SETTLED_S
    broken = tuple(path for path in sorted(folder.rglob("*.so")) if not is_whole(path) and _age_ended(path, before_s))
    for path in broken:
        path.unlink(missing_ok=True)
    if broken:
        log.warning("broken_compiled_code_dropped", files=[path.name for path in broken[:8]], num_files=len(broken))
    return broken


def is_whole(path: Path) -> bool:
    """Tell whether a file is a library with all the sections that its header says (ELF, 64 bits, little-endian)."""
    try:
        with path.open("rb") as file:
            header, size_bytes = file.read(_HEADER.size), path.stat().st_size
    except OSError:
        return True  # It is another's, or gone: not ours to judge.
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        return False
    sections_at, entry_bytes, num_entries = (_HEADER.unpack(header)[field] for field in (6, 11, 12))
    return bool(sections_at) and sections_at + entry_bytes * num_entries <= size_bytes


def _age_ended(path: Path, before_s: float) -> bool:
    try:
        return path.stat().st_mtime < before_s
    except OSError:
        return False
