"""`python -m tests.kernels.generated`: the code that torch's compiler writes for a layer on CUDA, without a device.

Its Triton backend writes it for a tiny model on the CPU, in the settings of CUDA. Each kernel is then compiled for GPUs
that are not there. Prints as JSON lines the launches of a layer, and what each kernel takes.
"""

# mypy: disable-error-code="no-untyped-call"
import importlib.util
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.utils._triton
import triton
from torch._inductor import config
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch._inductor.scheduler import ForeachKernelSchedulerNode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.kernels.compiling import CAPABILITIES, spilled_and_registers
from tests.model.tiny_worker import apart
from tests.support.device_on_cpu import loaded_as_on_cuda
from worker_service.engine.messages import Segment
from worker_service.model.cuda.compiling import compiler_settings
from worker_service.model.device_steps import DeviceSteps

NUM_TOKENS = 8
ON_CUDA = {"cpu_backend": "triton", "force_pointwise_cat": True, "force_disable_caches": True}
"""What the compiler does for a GPU, and has to be told to do for a CPU."""
BLOCKS = {"XBLOCK": 128, "YBLOCK": 32, "R0_BLOCK": 128}
_KERNEL = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str", re.DOTALL)
_LAUNCH = re.compile(r"^ +(?:buf\d+ = )?(\w+(?:\.\w+)*?)(\.run)?\(", re.MULTILINE)
_OF_OURS = {"torch.ops.hotslot.attend_varlen.default": 1, "torch.ops.hotslot_cuda.add_slots.default": 2}


class _WrittenError(Exception):
    """Ends a compilation once its code is written: there is nothing here that could run it."""


@contextmanager
def written_code(found: list[str]) -> Iterator[None]:
    """Keep what the compiler writes, in the settings of CUDA, instead of loading it."""

    def keep(graph: GraphLowering) -> None:
        found.append(graph.codegen()[0].value)
        raise _WrittenError

    # Its grouping leaves out nodes of a CPU.
    grouped: Callable[[Any], Any] = lambda scheduler: scheduler._topological_sort_nodes()  # noqa: E731
    before = ForeachKernelSchedulerNode.group_algorithm_for_combo_kernels
    ForeachKernelSchedulerNode.set_group_algorithm_for_combo_kernels(grouped)
    try:
        with (
            config.patch({**ON_CUDA, **compiler_settings(with_kernels=True)}),
            mock.patch.object(GraphLowering, "compile_to_module", keep),
            mock.patch.object(torch.utils._triton, "triton_hash_with_backend", return_value="none"),
        ):
            yield
    finally:
        ForeachKernelSchedulerNode.set_group_algorithm_for_combo_kernels(before)


def code_of_layers() -> dict[str, str]:
    """Code of a layer in a decoding step, by `base` and `adapters`."""
    code: dict[str, str] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        apart(),
        loaded_as_on_cuda("kernels", Path(folder), token_buckets=(NUM_TOKENS,), target_modules=()) as loaded,
    ):
        steps = loaded.runner.device_steps
        assert steps is not None
        for name, gates in (("base", ()), ("adapters", ((0, 1.0),))):
            found: list[str] = []
            layer = steps.model.get_submodule("model.layers.0")
            arguments = _arguments(steps, layer, gates)
            with written_code(found), torch.compiler.set_stance("default"):
                try:
                    torch.compile(layer, fullgraph=True, dynamic=False)(*arguments[0], **arguments[1])
                except torch._inductor.exc.InductorError:
                    assert found, "the compiler failed before it had written the code"
            (code[name],) = found
            torch._dynamo.reset()
    return code


def _arguments(steps: DeviceSteps, layer: torch.nn.Module, gates: tuple[tuple[int, float], ...]) -> Any:
    """Arguments of a layer's call in a decoding step of full rows."""
    found: list[Any] = []
    hook = layer.register_forward_pre_hook(lambda _, args, kwargs: found.append((args, kwargs)), with_kwargs=True)
    segments = [Segment((3,), 0, (0,), gates, None) for _ in range(NUM_TOKENS)]
    try:
        key = steps.key_of(segments)
        steps.send(segments, key)
        steps.compute(key)
    finally:
        hook.remove()
    return found[0]


def launches(code: str) -> dict[str, int]:
    """Launches of the code of one layer, by what is called: products, kernels of the compiler's, operators of ours."""
    found: dict[str, int] = {}
    _, _, body = code.partition("def call(")
    for name, is_kernel in _LAUNCH.findall(body):
        if is_kernel or name.startswith(("extern_kernels.", "torch.ops.")):
            found[name] = found.get(name, 0) + _OF_OURS.get(name, 1)
    return found


def kernels(code: str, folder: Path) -> Iterator[CachingAutotuner]:
    """Kernels of the code, not compiled yet."""
    for name, source in _KERNEL.findall(code):
        path = folder / f"{name}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield getattr(module, name)


def compiled(kernel: CachingAutotuner, capability: int) -> dict[str, Any]:
    """What a kernel takes of a GPU."""
    meta = kernel.triton_meta
    constants = {name: BLOCKS[name] for name, kind in meta["signature"].items() if kind == "constexpr"}
    source = ASTSource(kernel.fn, meta["signature"], constants, meta["configs"][0])
    target = GPUTarget("cuda", capability, 32)
    built = triton.compile(source, target=target, options={"num_warps": 4, "num_stages": 1})
    spilled, registers = spilled_and_registers(built.asm["cubin"])
    return {
        "kernel": kernel.fn.__name__,
        "capability": capability,
        "registers": registers,
        "spilled_bytes": spilled,
        "shared_bytes": built.metadata.shared,
    }


def main() -> int:
    """Prints one line for each layer, and one for each kernel and GPU; both layers have the same kernels."""
    code = code_of_layers()
    for name, of_layer in code.items():
        print(json.dumps({"layer": name, "launches": launches(of_layer)}))  # noqa: T201
    with tempfile.TemporaryDirectory() as folder:
        for kernel in kernels(code["adapters"], Path(folder)):
            for capability in CAPABILITIES:
                print(json.dumps(compiled(kernel, capability)))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
