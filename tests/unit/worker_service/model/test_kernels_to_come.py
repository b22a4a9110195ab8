"""Graphs whose kernels are still being built, and what the C++ compiler makes before its first one."""

import contextlib
from pathlib import Path

import pytest
import torch
from torch._inductor import config
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import CppPythonBindingsCodeCache, LambdaFuture

from worker_service.model.cpu import compiler_tools
from worker_service.model.cpu.kernels_to_come import KernelNotBuiltError, kernels_to_come


class SlowKernel:
    """A kernel that is built when it is waited for."""

    def __init__(self, name: str, built: list[str]) -> None:
        self._name, self._built = name, built

    def build(self) -> object:
        self._built.append(self._name)
        return lambda: self._name

    def future(self) -> LambdaFuture:
        return LambdaFuture(self.build)


def test_a_kernel_is_waited_for_when_all_graphs_are_traced() -> None:
    built: list[str] = []
    first, second = ({"cpp_fused": SlowKernel(name, built).future()} for name in ("first", "second"))
    with kernels_to_come():
        AsyncCompile()._wait_futures(first)
        AsyncCompile()._wait_futures(second)
        assert not built
        with pytest.raises(KernelNotBuiltError):
            first["cpp_fused"]()  # type: ignore[operator]
    assert built == ["first", "second"]
    assert (first["cpp_fused"](), second["cpp_fused"]()) == ("first", "second")  # type: ignore[operator]


def test_what_is_no_kernel_of_a_cpu_is_waited_for_as_ever() -> None:
    built: list[str] = []
    scope = {"triton_fused": SlowKernel("of a GPU", built).future()}
    with kernels_to_come():
        AsyncCompile()._wait_futures(scope)
        assert built == ["of a GPU"]


def test_kernels_are_there_after_an_error_and_the_next_graph_waits_for_its_own() -> None:
    built: list[str] = []
    scope = {"cpp_fused": SlowKernel("first", built).future()}
    with contextlib.suppress(ValueError), kernels_to_come():
        AsyncCompile()._wait_futures(scope)
        raise ValueError("of a step")
    assert built == ["first"]
    AsyncCompile()._wait_futures({"cpp_fused": SlowKernel("second", built).future()})
    assert built == ["first", "second"]


def test_a_graph_that_was_called_too_early_is_found_by_the_next_call() -> None:
    def tripled(x: torch.Tensor) -> torch.Tensor:
        return (x * 3 + 1).sin()

    compiled = torch.compile(tripled, dynamic=False, fullgraph=True)
    x = torch.arange(7.0)
    with torch.compiler.set_stance("default"):
        with kernels_to_come(), pytest.raises(KernelNotBuiltError):
            compiled(x)
        with torch.compiler.set_stance("fail_on_recompile"):
            torch.testing.assert_close(compiled(x), tripled(x))


def test_probes_are_spared_only_where_torch_has_the_functions_that_they_look_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for found, expected in ((True, True), (False, None)):
        with config.patch({"cpp.vec_isa_ok": None}):
            monkeypatch.setattr(compiler_tools, "has_vector_functions", lambda _, found=found: found)
            compiler_tools.spare_probes()
            assert config.cpp.vec_isa_ok is expected
    with config.patch({"cpp.vec_isa_ok": False}):
        monkeypatch.setattr(compiler_tools, "has_vector_functions", lambda _: True)
        compiler_tools.spare_probes()
        assert config.cpp.vec_isa_ok is False, "a choice of the environment is kept"
    monkeypatch.undo()
    assert not compiler_tools.has_vector_functions(tmp_path / "nothing.so")


def test_the_compiler_is_prepared_by_the_settings_of_whoever_begins_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def load(arguments: list[str], source: str) -> None:
        seen.append(config.cpp.vec_isa_ok)
        raise RuntimeError("no compiler")

    monkeypatch.setattr(CppPythonBindingsCodeCache, "load_pybinding", load)
    with config.patch({"cpp.vec_isa_ok": True}):
        compiler_tools.begin_preparing().join()
    assert seen == [True]
