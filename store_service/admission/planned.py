"""Modules that an adapter changes: as the checkpoint has them, and as the base needs them, block by block."""

from collections.abc import Sequence
from dataclasses import dataclass

from store_service.admission.parts import BaseCopy, StoredTensor


@dataclass(frozen=True, slots=True)
class PlannedModule:
    """One module that the adapter will change, as its trainer called it."""

    path: str
    rank: int
    scaling: float
    a: StoredTensor
    b: StoredTensor
    bias: StoredTensor | None = None


@dataclass(frozen=True, slots=True)
class Tie:
    """An embedding and the head that is tied to it; their parts must be each other's transposes."""

    embedding: PlannedModule
    head: PlannedModule


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of a stored tensor in their place in a written one, or rows of zeros."""

    tensor: StoredTensor | None
    """None for zeros."""
    rows: range
    """Rows of the stored tensor; elements of a vector."""
    left: int = 0
    """Columns of zeros before its own."""
    right: int = 0
    factor: float = 1.0
    """Zero, or a power of two of either sign: no mantissa changes."""

    @property
    def is_as_stored(self) -> bool:
        """True if its rows are written as they are."""
        return self.tensor is not None and not (self.left or self.right) and self.factor == 1.0


@dataclass(frozen=True, slots=True)
class WrittenTensor:
    """A tensor of the normalised file: blocks, one below the other."""

    shape: tuple[int, ...]
    blocks: tuple[Block, ...]

    @property
    def dtypes(self) -> set[str]:
        """The element types that hold its values exactly; a factor may lead beyond F16's largest value."""
        found = {block.tensor.entry.dtype for block in self.blocks if block.tensor is not None}
        is_scaled = any(block.factor != 1.0 for block in self.blocks)
        return found | {"F32"} if is_scaled and "F16" in found else found


@dataclass(frozen=True, slots=True)
class ServedModule:
    """One module of the base that the adapter will change."""

    path: str
    rank: int
    scaling: float
    a: WrittenTensor
    b: WrittenTensor
    bias: WrittenTensor | None = None


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """Modules to publish, and the checks of values that are still due."""

    modules: tuple[ServedModule, ...]
    """In the base's layer order."""
    copies: tuple[BaseCopy, ...]
    tie: Tie | None
    resized: tuple[BaseCopy, ...] = ()
    """Rows that the base has, too, of copies with added rows, which are refused."""


def as_stored(module: PlannedModule) -> ServedModule:
    """A module of which the base has the very linear, or embedding, that the adapter was trained on."""
    a, b = stacked([module.a]), stacked([module.b])
    bias = stacked([module.bias]) if module.bias is not None else None
    return ServedModule(module.path, module.rank, module.scaling, a, b, bias)


def stacked(tensors: Sequence[StoredTensor]) -> WrittenTensor:
    """Whole tensors, one below the other."""
    blocks = tuple(Block(tensor, range(tensor.shape[0])) for tensor in tensors)
    num_rows = sum(len(block.rows) for block in blocks)
    return WrittenTensor((num_rows, *tensors[0].shape[1:]), blocks)


def rows_of(tensor: StoredTensor, rows: range) -> WrittenTensor:
    """Some rows of a tensor, or elements of a vector."""
    return WrittenTensor((len(rows), *tensor.shape[1:]), (Block(tensor, rows),))
