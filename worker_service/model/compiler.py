"""Torch's compiler, which a start imports when it first compiles: one that has all programs of an earlier never does.

Importing Dynamo takes longer than loading a small model. So what this process wants of it is noted here, and done when
it is imported, whichever code needs it first.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch

DYNAMO = "torch._dynamo"
_STANCE = "stance"


def is_imported() -> bool:
    """Tell whether this process has the compiler."""
    found = sys.modules.get(DYNAMO)
    return found is not None and found.__spec__ is not None


def once_imported(name: str, act: Callable[[], None]) -> None:
    """Act now, or when the compiler is imported; of several acts of one name the last one counts."""
    if is_imported():
        act()
    else:
        _wanted()[name] = act


def fail_on_recompile() -> None:
    """Have any further compilation be an error."""
    once_imported(_STANCE, lambda: torch.compiler.set_stance("fail_on_recompile"))


@contextmanager
def compiling() -> Iterator[None]:
    """Let steps be compiled, also where a model that was loaded before in this process has ended that."""
    if is_imported():
        with torch.compiler.set_stance("default"):
            yield
        return
    ended = _wanted().pop(_STANCE, None)
    try:
        yield
    finally:
        if ended is not None:
            once_imported(_STANCE, ended)


def num_graphs() -> int:
    """Graphs that this process has traced."""
    return _count("stats", "unique_graphs")


def num_cache_misses() -> int:
    """Graphs that this process had to compile, because its cache directory did not have them."""
    return _count("inductor", "fxgraph_cache_miss")


def _count(of: str, name: str) -> int:
    if not is_imported():
        return 0
    from torch._dynamo.utils import counters

    return int(counters[of][name])


def _wanted() -> dict[str, Callable[[], None]]:
    """Acts that wait for the compiler."""
    finder = next((each for each in sys.meta_path if isinstance(each, _CompilerFinder)), None)
    if finder is None:
        finder = _CompilerFinder()
        sys.meta_path.insert(0, finder)
    return finder.wanted


class _CompilerFinder(MetaPathFinder):
    """Finds the compiler as it is found without us, and has what waits for it done once its module is there."""

    def __init__(self) -> None:
        self.wanted: dict[str, Callable[[], None]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != DYNAMO:
            return None
        # The list stays as it is: other threads go through it meanwhile, and would pass over a finder.
        others = (finder for finder in list(sys.meta_path) if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((each for each in found if each is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenActing(spec.loader, self.wanted)
        return spec


class _ThenActing(Loader):
    """Loads a module as its loader does, and acts then."""

    def __init__(self, loader: Loader, wanted: dict[str, Callable[[], None]]) -> None:
        self._loader = loader
        self._wanted = wanted

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        while self._wanted:
            _, act = self._wanted.popitem()
            act()
