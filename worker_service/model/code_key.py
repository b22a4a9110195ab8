"""Key of compiled code: everything that it depends on, so that another worker may use it."""

import hashlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers

from hotslot.errors import CompilerMissingError
from hotslot.ids import Digest
from worker_service.model.cpu.library import cpp_compiler, processor
from worker_service.model.options import ModelOptions
from worker_service.model.shared_code import COMPILER, CodeKey

_SHAPING = (
    "dtype", "weights", "num_slots", "slot_rank", "max_sequences", "kv_tokens", "block_tokens", "max_sequence_tokens",
    "token_buckets", "target_modules", "compile", "cpu_kernels", "cuda_kernels", "varlen_attention", "runs_ahead",
)  # fmt: skip
"""The options that shape graphs, or decide which of them there are."""
_COMPILER_TIMEOUT_S = 10.0


def code_key(options: ModelOptions, base_model_digest: Digest, folder: Path) -> CodeKey:
    """The key of what this process compiles of a model's folder; torch's number of threads must have been set."""
    device = torch.device(options.device)
    facts = {name: str(getattr(options, name)) for name in _SHAPING}
    facts |= {
        "base_model": base_model_digest,
        # Windows, scales and caps are numbers in programs, and no part of the base model's digest.
        "config": hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()[:16],
        "hotslot": _sources(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{sys.platform} {platform.machine()}",
        "device": device.type,
        # Inductor writes it into the loops of what it compiles for a CPU.
        "num_threads": str(torch.get_num_threads()),
        COMPILER: _compiler(),
        "processor": hashlib.sha256(processor().encode()).hexdigest()[:16],
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = f"{properties.name}, {properties.major}.{properties.minor}, CUDA {torch.version.cuda}"
    return CodeKey(facts)


@contextmanager
def telling_missing_compiler(key: CodeKey) -> Iterator[None]:
    """Say what compiles without a compiler as what it is: raises CompilerMissingError."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as exc:
        if not key.is_open:
            raise
        why = str(exc).strip().partition("\n")[0]
        raise CompilerMissingError(f"the shipped code lacks what a kind of step needs ({why})") from exc


def _sources() -> str:
    """Digest of the code that is compiled: finer than a version, since it changes between releases too."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".cpp", ".h"):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _compiler() -> str:
    """Name and version of the C++ compiler; empty where there is none.

    One that does not answer, on a machine that is busy for example, is one all the same: what it compiles is tried.
    """
    name = cpp_compiler()
    if shutil.which(name) is None:
        return ""
    try:
        command = [name, "--version"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILER_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as exc:
        return f"{name}, {type(exc).__name__}"
    return answer.stdout.partition("\n")[0]
