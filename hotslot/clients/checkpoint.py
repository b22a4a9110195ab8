"""Files of a PEFT folder that are pushed: the configuration and safetensors, never a pickle."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hotslot.errors import InvalidAdapterError, SourceNotFoundError, Violation
from hotslot.formats.companions import (
    COMPANION_FILES,
    MAX_FILE_BYTES,
    MAX_SUMMARY_BYTES,
    SUMMARY_FILE,
    read_companions,
)
from hotslot.formats.file_names import CONFIG_FILE, INDEX_FILE, MAX_SHARDS, SHARD, SIGNATURE_FILE, WEIGHTS_FILES
from hotslot.formats.pickle_advice import conversion_command
from hotslot.ids import Digest

_SAFETENSORS = ".safetensors"
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HASH_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """One file to push."""

    path: str
    """Name inside the folder."""
    local: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FoundCheckpoint:
    """Checkpoint found in a folder."""

    files: tuple[CheckpointFile, ...]
    """Files to push, the configuration first; beside violations only those that are an adapter's by their names."""
    violations: tuple[Violation, ...]
    """Files that are missing, empty or pickled."""


def find_checkpoint(folder: Path) -> FoundCheckpoint:
    """Look for a checkpoint in a folder. Raises SourceNotFoundError when `folder` is not a folder."""
    if not folder.is_dir():
        raise SourceNotFoundError(
            f"{folder} is not a folder; give the folder that `save_pretrained` wrote", str(folder)
        )
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    chosen = [name for name in (CONFIG_FILE, *_weights(names), SIGNATURE_FILE) if name in names]
    files = [CheckpointFile(n, folder / n, (folder / n).stat().st_size) for n in chosen]
    problem = "was its download or its export interrupted?"
    empty = [
        Violation.of("FILE_TRUNCATED", file.path, "an empty file", "content", problem)
        for file in files
        if not file.size_bytes
    ]
    violations = (*_config_violations(folder, names), *_weights_violations(folder, names), *empty)
    return FoundCheckpoint(tuple(file for file in files if file.size_bytes), violations)


def checkpoint_files(folder: Path) -> tuple[CheckpointFile, ...]:
    """The files of a checkpoint folder that are pushed, the configuration first.

    Raises:
        SourceNotFoundError: `folder` is not a folder.
        InvalidAdapterError: it holds no adapter, or only pickled weights, or empty files.
    """
    found = find_checkpoint(folder)
    if found.violations:
        raise InvalidAdapterError(found.violations)
    return found.files


@contextmanager
def files_beside(folder: Path) -> Iterator[tuple[CheckpointFile, ...]]:
    """Files to push for what lies beside the weights: a summary, and where the folder is signed what was signed."""
    companions = read_companions(folder)
    data = companions.to_json().encode()
    signed = _companions_in(folder) if (folder / SIGNATURE_FILE).is_file() else ()
    if not (companions.files or companions.damaged) or len(data) > MAX_SUMMARY_BYTES:
        yield signed
        return
    with tempfile.TemporaryDirectory(prefix="hotslot-") as scratch:
        local = Path(scratch) / SUMMARY_FILE
        local.write_bytes(data)
        yield (*signed, CheckpointFile(SUMMARY_FILE, local, len(data)))


def _companions_in(folder: Path) -> tuple[CheckpointFile, ...]:
    there = [name for name in COMPANION_FILES if (folder / name).is_file()]
    files = [CheckpointFile(name, folder / name, (folder / name).stat().st_size) for name in there]
    return tuple(file for file in files if 0 < file.size_bytes <= MAX_FILE_BYTES)


def file_digest(file: CheckpointFile, on_bytes: Callable[[int], None] | None = None) -> Digest:
    """The SHA-256 of a file's bytes; `on_bytes` hears of each chunk's size."""
    sha = hashlib.sha256()
    with file.local.open("rb") as stream:
        while chunk := stream.read(_HASH_CHUNK_BYTES):
            sha.update(chunk)
            if on_bytes is not None:
                on_bytes(len(chunk))
    return Digest("sha256:" + sha.hexdigest())


def _weights(names: list[str]) -> list[str]:
    """The files with an adapter's tensors; other weights beside a config are those of a whole model."""
    for name in WEIGHTS_FILES:
        if name in names:
            return [name]
    return [name for name in names if SHARD.fullmatch(name) or name == INDEX_FILE]


def _missing_shards(names: list[str]) -> list[str]:
    """The shards that should be there by the names of those that are."""
    found = {name: SHARD.fullmatch(name) for name in names}
    totals = {match[2] for match in found.values() if match is not None}
    wanted = [f"adapter_model-{number:05}-of-{total}.safetensors" for total in totals
              for number in range(1, min(int(total), MAX_SHARDS) + 1)]  # fmt: skip
    return sorted(set(wanted) - set(names))


def _config_violations(folder: Path, names: list[str]) -> list[Violation]:
    if CONFIG_FILE in names:
        return []
    nested = sorted(str(path.parent) for path in folder.glob(f"*/{CONFIG_FILE}"))
    if not nested and _whole_model(names):
        return []
    advice = f"; did you mean {nested[-1]}?" if nested else "; is this what `save_pretrained` wrote?"
    if len(nested) > 1:
        advice += f" There are adapters in {', '.join(nested[:8])}{', …' if len(nested) > 8 else ''}."
    return [
        Violation(
            code="MISSING_FILE",
            subject=CONFIG_FILE,
            found="no such file",
            expected="PEFT's configuration",
            message=f"{folder} has no {CONFIG_FILE}{advice}",
        )
    ]


def _whole_model(names: list[str]) -> list[str]:
    """Weights that are no adapter's."""
    return [name for name in names if name.endswith(_SAFETENSORS)] if not _weights(names) else []


def _weights_violations(folder: Path, names: list[str]) -> list[Violation]:
    if missing := _missing_shards(names) if _weights(names) else []:
        found = f"{len(_weights(names))} files"
        problem = "the adapter is stored in several files, and not all of them are there"
        return [Violation.of("MISSING_FILE", name, found, "all of them", problem) for name in missing]
    if _weights(names):
        return []
    if whole := _whole_model(names):
        what = (
            "a whole model, as a full fine-tune or a merge writes it" if CONFIG_FILE not in names else "other weights"
        )
        return [
            Violation(
                code="MISSING_FILE",
                subject=whole[0],
                found=", ".join(whole[:4]),
                expected=WEIGHTS_FILES[0],
                message=f"{folder} holds {what} ({whole[0]}) and no adapter's: push the folder that PEFT's "
                "save_pretrained wrote before merging; a whole model is served as a base (`hotslot base add`)",
            )
        ]
    pickles = [n for n in names if n.endswith(_PICKLE_SUFFIXES)]
    if not pickles:
        return [
            Violation(
                code="MISSING_FILE",
                subject=WEIGHTS_FILES[0],
                found="no .safetensors file",
                expected=WEIGHTS_FILES[0],
                message=f"there are no weights: expected {WEIGHTS_FILES[0]}",
            )
        ]
    pickle = next((n for n in pickles if n.startswith("adapter_model")), pickles[0])
    return [
        Violation(
            code="UNSUPPORTED_PICKLE",
            subject=pickle,
            found="pickled weights only",
            expected=WEIGHTS_FILES[0],
            message=f"{pickle} is a pickle, which can run code when it is read; convert it where you trust it: "
            + conversion_command(str(folder / pickle), str(folder / WEIGHTS_FILES[0])),
        )
    ]
