"""Prepares the C++ side of torch's compiler, which makes some things once before its first kernel, beside a start.

It finds out for which vectors it may write, by compiling and loading a program for each kind, and parses its headers to
keep them: some 15 s of a core, which nothing else waits for meanwhile.
"""

import contextlib
import ctypes
import importlib
import subprocess
import threading
from contextvars import copy_context
from pathlib import Path

import torch

_ARGUMENTS = ["float*"]
_KERNEL = """
#include <torch/csrc/inductor/cpp_prefix.h>
extern "C" void kernel(float* in_out_ptr0)
{
    auto tmp0 = at::vec::Vectorized<float>::loadu(in_out_ptr0);
    tmp0.store(in_out_ptr0);
}
"""
"""Written as the compiler writes its own, so that it needs what these need."""
_VECTOR_FUNCTIONS = ("Sleef_expf8_u10", "Sleef_expf16_u10")


def spare_probes() -> None:
    """Have the compiler take the processor's word for its vectors where torch has their functions.

    Its programs look for just these in torch, which an old compiler may have built without. Kinds of instructions that
    it asks for by programs of their own, such as AMX, it still does.
    """
    settings = torch._inductor.config.cpp
    if settings.vec_isa_ok is None and has_vector_functions(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"):
        settings.vec_isa_ok = True


def has_vector_functions(library: Path) -> bool:
    """Tell whether a library has the functions of vectors of 256 and of 512 bits."""
    try:
        loaded = ctypes.CDLL(str(library))
    except OSError:
        return False
    return all(hasattr(loaded, name) for name in _VECTOR_FUNCTIONS)


def begin_preparing() -> threading.Thread:
    """Compile a kernel that nobody calls; what fails here fails again, and is told, with the first one that is."""
    # Here and not in the thread, so that this context has the settings that wait for the compiler.
    importlib.import_module("torch._dynamo")

    def prepare() -> None:
        with contextlib.suppress(OSError, RuntimeError, subprocess.SubprocessError):
            from torch._inductor.codecache import CppPythonBindingsCodeCache

            CppPythonBindingsCodeCache.load_pybinding(_ARGUMENTS, _KERNEL)

    # The compiler's settings are those of a context, and a new thread has none of its own.
    thread = threading.Thread(target=copy_context().run, args=(prepare,), name="prepare compiler", daemon=True)
    thread.start()
    return thread
