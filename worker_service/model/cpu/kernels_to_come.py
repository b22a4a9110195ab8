"""Stands for kernels that the C++ compiler still builds, so that the next graph is traced meanwhile.

A graph's code is complete before its kernels are. Whatever calls one of them too early ends, and leaves the graph where
the next call finds it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch._inductor.async_compile import AsyncCompile

KERNEL_PREFIX = "cpp_"
"""Names of kernels in the modules of compiled code."""


class KernelNotBuiltError(Exception):
    """A compiled graph was called before its kernels were there; it has computed nothing."""


@contextmanager
def kernels_to_come() -> Iterator[None]:
    """Have graphs be traced without waiting for their kernels, whose calls raise KernelNotBuiltError meanwhile.

    In the end all kernels are there, or what the C++ compiler refused is raised.
    """
    # Only what compiles imports the compiler.
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.codecache import CodeCacheFuture

    waited_for: list[tuple[dict[str, Any], str, CodeCacheFuture]] = []
    wait = AsyncCompile._wait_futures

    def put_off(code: "AsyncCompile", scope: dict[str, Any]) -> None:
        for name, value in scope.items():
            if name.startswith(KERNEL_PREFIX) and isinstance(value, CodeCacheFuture):
                waited_for.append((scope, name, value))
                scope[name] = _refuse
        wait(code, scope)

    AsyncCompile._wait_futures = put_off  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        AsyncCompile._wait_futures = wait  # type: ignore[method-assign]
        for scope, name, future in waited_for:
            scope[name] = future.result()


def _refuse(*_: Any) -> None:
    raise KernelNotBuiltError
