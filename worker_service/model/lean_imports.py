"""Imports of transformers without what a worker never uses: several processes, and a compiler while nothing compiles.

transformers imports Dynamo to mark functions for it, and torch's tensors of several processes with sympy behind them:
longer than the rest of it. It serves builds of torch that cannot be distributed, so it is told that this is one. Marks
are noted, and made when the compiler is imported.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from types import ModuleType
from typing import Any, TypeVar

import structlog
import torch

from worker_service.model import compiler

log = structlog.get_logger(__name__)

T = TypeVar("T")

_GETITEM = f"{compiler.DYNAMO}._trace_wrapped_higher_order_op"
UNUSED = ("is_torch_distributed_available", "is_accelerate_available")
"""Questions of transformers that are answered with no: what a worker's wheel does not bring, or has one process for."""
OF_MODELS = ("transformers.masking_utils", "transformers.modeling_layers")
"""Modules that any model's own module imports, when a model of its type is loaded."""
MARKS = ("allow_in_graph", "assume_constant_result")
"""Functions of the compiler that note something of a function, and return it."""


def import_leanly(name: str) -> None:
    """Import a module with what it imports of transformers.

    Something that needs more of the compiler, such as an installed package that transformers tries, leaves it to the
    plain import that is to follow.
    """
    try:
        with lean_imports():
            importlib.import_module(name)
    except (ImportError, AttributeError) as exc:
        log.warning("not_imported_leanly", module=name, why=str(exc))


def without_compiler(act: Callable[[], T]) -> T:
    """Act, while what torch and transformers want to mark for the compiler is only noted.

    What needs more of the compiler is done again with it.
    """
    try:
        with _noting():
            return act()
    except (ImportError, AttributeError) as exc:
        log.warning("compiler_needed", why=str(exc))
    return act()


@contextmanager
def lean_imports() -> Iterator[None]:
    """Have transformers imported leanly, in a process that serves; does nothing where the compiler is there already.

    Call it before anything of transformers is used: modules keep the answers that they were given.
    """
    if compiler.is_imported():
        yield
        return
    _answer_no()
    with _noting():
        yield
        for name in OF_MODELS:
            importlib.import_module(name)


@contextmanager
def _noting() -> Iterator[None]:
    """Have stand-ins of the compiler note marks; does nothing where it is there already."""
    if compiler.DYNAMO in sys.modules:
        yield
        return
    marks: list[tuple[str, Any]] = []
    stands = _stand_in(marks)
    own = {name: getattr(torch.compiler, name) for name in (*MARKS, "disable")}
    sys.modules.update(stands)
    for name in own:
        setattr(torch.compiler, name, getattr(stands[compiler.DYNAMO], name))
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(torch.compiler, name, function)
        for name, module in stands.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        if torch.__dict__.get("_dynamo") is stands[compiler.DYNAMO]:
            del torch.__dict__["_dynamo"]
        compiler.once_imported(f"marks {id(marks)}", partial(_mark, marks))


def _answer_no() -> None:
    import transformers.utils
    from transformers.utils import import_utils

    for name in UNUSED:
        for module in (transformers.utils, import_utils):
            setattr(module, name, _no)


def _no(*_: object, **__: object) -> bool:
    return False


def _stand_in(marks: list[tuple[str, Any]]) -> dict[str, ModuleType]:
    """Modules that note marks while transformers is imported."""

    def noting(mark: str) -> Callable[[Any], Any]:
        def note(function: Any) -> Any:
            marks.append((mark, function))
            return function

        return note

    package, inner = ModuleType(compiler.DYNAMO), ModuleType(_GETITEM)
    package.__path__ = []  # a package, of which there is no more than the other one
    names: dict[str, Any] = {mark: noting(mark) for mark in MARKS} | {"disable": _disabled}
    package.__dict__.update(names)
    inner.__dict__["TransformGetItemToIndex"] = _transform_getitem
    return {compiler.DYNAMO: package, _GETITEM: inner}


def _mark(marks: list[tuple[str, Any]]) -> None:
    """Make the marks that were noted."""
    dynamo = sys.modules[compiler.DYNAMO]
    for mark, function in marks:
        getattr(dynamo, mark)(function)


def _disabled(function: Any = None, recursive: bool = True, **options: Any) -> Any:
    """`torch._dynamo.disable`, asked for when the function is called and the compiler is there."""
    if function is None:
        return partial(_disabled, recursive=recursive, **options)
    made: list[Any] = []

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        if not compiler.is_imported():
            return function(*arguments, **named)
        if not made:
            disable: Any = sys.modules[compiler.DYNAMO].disable
            made.append(disable(function, recursive, **options))
        return made[0](*arguments, **named)

    return call


def _transform_getitem() -> Any:
    """The class of this name, which makes calls of Dynamo's; with a stand-in it is the compiler that is needed."""
    if compiler.DYNAMO in sys.modules and not compiler.is_imported():
        raise ImportError(f"{_GETITEM} is needed")
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    return TransformGetItemToIndex()
