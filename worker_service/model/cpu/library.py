"""Builds and loads the native kernels, with the C++ compiler that torch.compile needs on CPU anyway.

The library's name is a digest of everything that it depends on, so a cache directory can be kept and shared between
processes and machines.
"""

import contextlib
import functools
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import structlog
import torch

log = structlog.get_logger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
HEADERS = tuple(sorted(SOURCE.parent.glob("*.h")))
HEAD_SIZE_MULTIPLE = 16
MATRIX_TOKENS = 16
"""From more tokens on a step is bound by arithmetic, where the library's blocked matrix products are as fast."""
SEGMENT_TOKENS = 8
"""Segments of so many tokens, decoding above all, cost one call each in the library, and one for all in the kernels."""
_BF16_PRODUCTS = ("avx512_bf16", "amx_bf16", "bf16")
"""Flags of processors that multiply bfloat16 in hardware: x86's, and Arm's."""
DTYPES = (torch.bfloat16, torch.float32)
"""Element types of weights and activations."""
_FLAGS = ("-std=c++20", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
_BUILD_TIMEOUT_S = 600.0


def load_kernels(cache_dir: Path | None) -> bool:
    """Build the kernels if they are not in `cache_dir` yet, and load them; False, with a warning, if that fails.

    Harmless when they are loaded already. Without them the same is computed by torch's own operators.
    """
    if are_loaded():
        return True
    try:
        torch.ops.load_library(str(_built(_directory(cache_dir))))  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError, subprocess.SubprocessError) as exc:
        detail = exc.stderr if isinstance(exc, subprocess.CalledProcessError) else str(exc)
        log.warning("cpu_kernels_not_built", why=str(detail)[-2000:])
        return False
    _describe_results()
    return True


def begin_building(cache_dir: Path | None) -> threading.Thread:
    """Build the kernels beside what a start does before it needs them; `load_kernels` after it finds them, or fails."""

    def build() -> None:
        with contextlib.suppress(OSError, RuntimeError, subprocess.SubprocessError):
            _built(_directory(cache_dir))

    thread = threading.Thread(target=build, name="build kernels", daemon=True)
    thread.start()
    return thread


def are_loaded() -> bool:
    """Tell whether this process has the kernels."""
    return hasattr(torch.ops.hotslot_cpu, "slot_linear")


def linear_tokens(dtype: torch.dtype) -> int:
    """Largest number of tokens for which our linear is the faster one, by element type and processor."""
    return sys.maxsize if _has_slow_products(dtype) else MATRIX_TOKENS


def attention_tokens(dtype: torch.dtype) -> int:
    """Largest number of a segment's tokens for which our attention is the faster one, by element type and processor."""
    return sys.maxsize if _has_slow_products(dtype) else SEGMENT_TOKENS


def _has_slow_products(dtype: torch.dtype) -> bool:
    """Tell whether the library's products are slower than ours at any size: bfloat16's without hardware for them."""
    return dtype == torch.bfloat16 and not _multiplies_bf16()


@functools.cache
def _multiplies_bf16() -> bool:
    return any(flag in _BF16_PRODUCTS for flag in processor().split())


def _directory(cache_dir: Path | None) -> Path:
    return cache_dir or Path(tempfile.gettempdir()) / f"hotslot-kernels-{os.getuid()}"


def _built(directory: Path) -> Path:
    """The library's file, compiled if it is not there; raises OSError and SubprocessError."""
    compiler = cpp_compiler()
    target = directory / f"hotslot_cpu-{_digest(compiler)}.so"
    if target.is_file():
        return target
    from torch.utils.cpp_extension import include_paths  # takes long

    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    began_s = time.monotonic()
    libraries = Path(torch.__file__).parent / "lib"
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        built = Path(scratch) / target.name
        command = [compiler, *_FLAGS, *(f"-I{path}" for path in include_paths()), str(SOURCE), "-o", str(built)]
        command += [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch_cpu", "-lc10"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S)
        # Another process that builds the kernels meanwhile builds the same bytes.
        built.replace(target)
    log.info("cpu_kernels_built", duration_s=round(time.monotonic() - began_s, 1), file=target.name)
    return target


def _digest(compiler: str) -> str:
    """Digest of source, flags, compiler, torch and processor."""
    parts = [file.read_text() for file in (SOURCE, *HEADERS)] + [*_FLAGS, compiler, torch.__version__, processor()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@functools.cache
def cpp_compiler() -> str:
    """Name of the C++ compiler that torch's own compiler takes, which is not imported to ask it.

    A worker that has none says the name that others' has who shipped their library. A shell reads the variable: it is
    that of all compilers, which Inductor goes by, and no setting of ours.
    """
    usual = "clang++" if sys.platform == "darwin" else "g++"
    command = ["/bin/sh", "-c", f'printf %s "${{CXX-{usual}}}"']
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def processor() -> str:
    """Instruction sets of the processor, as Linux lists them; native code is for these."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _describe_results() -> None:
    """Tell the compiler the shapes of what the kernels return."""
    torch.library.register_fake("hotslot_cpu::linear", _rows_by_outputs)
    torch.library.register_fake("hotslot_cpu::linear_int8", _rows_by_outputs)
    torch.library.register_fake("hotslot_cpu::slot_linear", _rows_by_outputs)
    torch.library.register_fake("hotslot_cpu::slot_linear_int8", _rows_by_outputs)
    torch.library.register_fake("hotslot_cpu::add_slots", _like_sums)


def _rows_by_outputs(x_TI: torch.Tensor, weight_OI: torch.Tensor, *_: torch.Tensor | None) -> torch.Tensor:
    return x_TI.new_empty(x_TI.shape[0], weight_OI.shape[0])


def _like_sums(_: torch.Tensor, y_TO: torch.Tensor, *__: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(y_TO)
