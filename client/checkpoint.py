"""Which files of a PEFT folder are pushed: the configuration and safetensors, never a pickle."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared.errors import InvalidAdapterError, SourceNotFoundError, Violation
from shared.ids import Digest

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILES = ("adapter_model.safetensors", "adapters.safetensors")
"""What PEFT and MLX call an adapter's weights; the first that is there is taken alone."""
_INDEX_SUFFIX = ".safetensors.index.json"
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
    """What a folder holds of a checkpoint."""

    files: tuple[CheckpointFile, ...]
    """What can be pushed, the configuration first; beside violations only what is an adapter's by its name."""
    violations: tuple[Violation, ...]
    """What is missing, empty or pickled."""


def find_checkpoint(folder: Path) -> FoundCheckpoint:
    """Look for a checkpoint in a folder. Raises SourceNotFoundError when `folder` is not a folder."""
    if not folder.is_dir():
        raise SourceNotFoundError(
            f"{folder} is not a folder; give the folder that `save_pretrained` wrote", str(folder)
        )
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    chosen = [name for name in (CONFIG_FILE, *_weights(names)) if name in names]
    files = [CheckpointFile(n, folder / n, (folder / n).stat().st_size) for n in chosen]
    problem = "was its download or its export interrupted?"
    empty = [
        Violation.of("FILE_TRUNCATED", file.path, "an empty file", "content", problem)
        for file in files
        if not file.size_bytes
    ]
    violations = (*_config_violations(folder, names), *_weights_violations(names), *empty)
    # Other weights in a folder that is no adapter's are likely those of a whole model.
    files = [file for file in files if file.size_bytes and (not violations or _is_adapters(file.path))]
    return FoundCheckpoint(tuple(files), violations)


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
    for name in WEIGHTS_FILES:
        if name in names:
            return [name]
    return [n for n in names if n.endswith((".safetensors", _INDEX_SUFFIX))]


def _is_adapters(name: str) -> bool:
    return name in (CONFIG_FILE, *WEIGHTS_FILES) or name.startswith("adapter_model")


def _config_violations(folder: Path, names: list[str]) -> list[Violation]:
    if CONFIG_FILE in names:
        return []
    nested = sorted(str(path.parent) for path in folder.glob(f"*/{CONFIG_FILE}"))
    advice = f"; did you mean {nested[-1]}?" if nested else "; is this what `save_pretrained` wrote?"
    return [
        Violation(
            code="MISSING_FILE",
            subject=CONFIG_FILE,
            found="no such file",
            expected="PEFT's configuration",
            message=f"{folder} has no {CONFIG_FILE}{advice}",
        )
    ]


def _weights_violations(names: list[str]) -> list[Violation]:
    if _weights(names):
        return []
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
            f'python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{pickle}', weights_only=True), '{WEIGHTS_FILES[0]}')\"",
        )
    ]
