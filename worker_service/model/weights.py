"""From a weights blob to an adapter in host memory, checked against what this worker can serve.

Shapes: I in_features, O out_features, R the module's rank, and one more where it has a bias.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from hotslot.errors import (
    BaseModelMismatchError,
    InvalidAdapterError,
    RankTooLargeError,
    UnsupportedAdapterError,
    Violation,
)
from hotslot.formats.base_spec import ALL_LINEAR
from hotslot.formats.manifest import LORA_A, LORA_B, LORA_B_BIAS, AdapterModule, Manifest
from hotslot.formats.safetensors_header import TensorEntry
from hotslot.ids import Digest
from shared.recycled_memory import RecycledMemory
from worker_service.model.known_headers import KnownHeaders

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Element types of weights blobs, by safetensors' names."""


@dataclass(frozen=True, slots=True)
class HostModule:
    """One module's low-rank pair, in the model's element type."""

    a_RI: torch.Tensor
    b_RO: torch.Tensor
    """B transposed, as slots keep it."""
    scaling: float
    has_bias: bool = False
    """True if the last rank is a bias: its input is 1 in place of A's product, which is 0 there."""

    @property
    def num_ranks(self) -> int:
        """R."""
        return self.a_RI.shape[0]


@dataclass(frozen=True, slots=True)
class HostAdapter:
    """A version in host memory; an AdapterWeights."""

    digest: Digest
    max_rank: int
    """The most ranks that a module takes in slots, its bias included."""
    size_bytes: int
    modules: dict[str, HostModule]
    stretch_N: torch.Tensor | None = None
    """Memory of all modules in one piece, flat; None where they lie apart. Views keep it from being used again."""


@dataclass(frozen=True)
class SlotLayout:
    """Layout of the slots, which adapters must fit into."""

    base_model_digest: Digest
    shapes: dict[str, tuple[int, int]]
    """(in_features, out_features) of every module with slots, by path, in layer order."""
    max_rank: int
    total_ranks: int
    """Ranks of all slots together."""
    target_modules: tuple[str, ...]
    """The setting that chose the modules."""
    dtype: torch.dtype
    without_slots: Mapping[str, str] = field(default_factory=dict)
    """Linears that cannot have slots, by path: what they are in the loaded model."""


class HostMemory(Protocol):
    """Memory for adapters, from any thread."""

    def take(self, size_bytes: int) -> memoryview:
        """Memory with any content, which is used again when all views of it have ended."""
        ...


class SlotWeightsDecoder:
    """Decodes weights blobs for one layout."""

    def __init__(self, layout: SlotLayout, memory: HostMemory | None = None) -> None:
        """`memory` is what a device copies from; without it, the host's own."""
        self._layout = layout
        self._memory = memory or RecycledMemory()
        self._headers = KnownHeaders()

    def check(self, manifest: Manifest) -> None:
        """Refuse what this worker cannot serve, as far as that can be told without the weights.

        Raises BaseModelMismatchError, RankTooLargeError, and UnsupportedAdapterError when a targeted module has no
        slots.
        """
        layout = self._layout
        base = manifest.base_model_digest
        if base != layout.base_model_digest:
            problem = "it was made for another base model than this worker serves"
            raise BaseModelMismatchError(
                [Violation.of("BASE_MODEL_MISMATCH", "base_model_digest", base, layout.base_model_digest, problem)]
            )
        too_large = list(self._too_large(manifest))
        if too_large:
            raise RankTooLargeError(too_large)
        unserved = [module.path for module in manifest.modules if module.path not in layout.shapes]
        if unserved:
            raise UnsupportedAdapterError(self._unserved(unserved))

    def _too_large(self, manifest: Manifest) -> Iterator[Violation]:
        layout = self._layout
        for module in manifest.modules:
            if module.rank > layout.max_rank:
                expected, problem = f"at most {layout.max_rank}", "its rank is too large; raise HOTSLOT_MAX_RANK"
                yield Violation.of("RANK_TOO_LARGE", module.path, f"rank {module.rank}", expected, problem)
            elif module.rank + module.has_bias > layout.total_ranks:
                expected = f"at most {layout.total_ranks}"
                problem = "a bias takes one rank more than all slots together have; raise HOTSLOT_NUM_SLOTS"
                yield Violation.of("RANK_TOO_LARGE", module.path, f"rank {module.rank} + 1", expected, problem)

    def _unserved(self, paths: Sequence[str]) -> list[Violation]:
        reasons = self._layout.without_slots
        names = {path.rpartition(".")[2]: None for path in paths if path not in reasons}
        setting = ",".join([*(self._layout.target_modules or [ALL_LINEAR]), *names])
        advice = f"it has no slots on this worker; start the workers with HOTSLOT_TARGET_MODULES={setting}"
        problems = {path: f"it cannot have slots: once loaded, it {reasons[path]}" for path in paths if path in reasons}
        return [
            Violation.of("TARGET_NOT_SERVED", path, "a target", "a module with slots", problems.get(path, advice))
            for path in paths
        ]

    def decode(self, manifest: Manifest, blob: bytes | bytearray | memoryview) -> HostAdapter:
        """Read a blob whose digest was verified, of a manifest that `check` lets pass.

        Raises InvalidAdapterError when the blob is not what its manifest says, or is not finite in the model's element
        type.
        """
        tensors = self._read(manifest, blob)
        left_N = stretch_N = self._allocate(manifest.modules)
        modules: dict[str, HostModule] = {}
        taken: list[tuple[str, torch.Tensor]] = []
        violations: list[Violation] = []
        for module in manifest.modules:
            in_features, out_features = self._layout.shapes[module.path]
            num_ranks = module.rank + module.has_bias
            a_RI, b_RO, left_N = _cut(left_N, (num_ranks, in_features), (num_ranks, out_features))
            self._fill(module, a_RI, b_RO, tensors, taken, violations)
            modules[module.path] = HostModule(a_RI, b_RO, module.scaling, module.has_bias)
        # One look at all of it costs a hundredth of one at each tensor.
        if violations or not _is_finite(stretch_N):
            text = f"values that are not finite as {self._layout.dtype}"
            violations.extend(
                _violation("NOT_FINITE", name, "NaN or infinity", "finite values", f"{name} has {text}")
                for name, target in taken
                if not _is_finite(target)
            )
        violations.extend(
            _violation("UNEXPECTED_TENSOR", name, "a tensor", "none", f"{name} stands in no module of the manifest")
            for name in tensors
        )
        if violations:
            raise InvalidAdapterError(violations)
        size_bytes = sum(t.nbytes for m in modules.values() for t in (m.a_RI, m.b_RO))
        max_rank = max(m.num_ranks for m in modules.values())
        return HostAdapter(manifest.digest, max_rank, size_bytes, modules, stretch_N)

    def _read(self, manifest: Manifest, blob: bytes | bytearray | memoryview) -> dict[str, torch.Tensor]:
        """All tensors of a blob, by name, where they lie in it."""
        data = memoryview(bytearray(blob) if isinstance(blob, bytes) else blob)  # torch takes none that is read-only
        header = self._headers.header(data, f"weights blob {manifest.weights_digest}")
        strange = [entry for entry in header.tensors if entry.dtype not in _DTYPES]
        if strange:
            expected = "one of " + ", ".join(_DTYPES)
            problem = "no weights blob has this element type"
            raise InvalidAdapterError(
                [Violation.of("UNSUPPORTED_DTYPE", entry.name, entry.dtype, expected, problem) for entry in strange]
            )
        return {entry.name: _tensor(data, entry) for entry in header.tensors}

    def _allocate(self, modules: Sequence[AdapterModule]) -> torch.Tensor:
        """One stretch of memory for all pairs, in the order in which they are copied to a slot."""
        layout = self._layout
        size = sum((module.rank + module.has_bias) * sum(layout.shapes[module.path]) for module in modules)
        return torch.frombuffer(self._memory.take(size * layout.dtype.itemsize), dtype=layout.dtype)

    def _fill(
        self,
        module: AdapterModule,
        a_RI: torch.Tensor,
        b_RO: torch.Tensor,
        tensors: dict[str, torch.Tensor],
        taken: list[tuple[str, torch.Tensor]],
        violations: list[Violation],
    ) -> None:
        """Copy one module's tensors, removing them from those read; notes them, and those of other shapes."""
        b_OR = b_RO.T
        if module.has_bias:
            a_RI[-1] = 0
            self._take(tensors, module.path + LORA_B_BIAS, b_OR[:, -1], taken, violations)
        self._take(tensors, module.path + LORA_A, a_RI[: module.rank], taken, violations)
        self._take(tensors, module.path + LORA_B, b_OR[:, : module.rank], taken, violations)

    def _take(
        self,
        tensors: dict[str, torch.Tensor],
        name: str,
        target: torch.Tensor,
        taken: list[tuple[str, torch.Tensor]],
        violations: list[Violation],
    ) -> None:
        tensor = tensors.pop(name, None)
        if tensor is None or tensor.shape != target.shape:
            found, expected = "nothing" if tensor is None else str(tuple(tensor.shape)), str(tuple(target.shape))
            text = f"{name}: found {found}, expected {expected}"
            violations.append(_violation("SHAPE_MISMATCH", name, found, expected, text))
            return
        target.copy_(tensor)
        taken.append((name, target))


def _is_finite(values: torch.Tensor) -> bool:
    """False where any value is NaN, which the extremes take over, or infinite."""
    return not values.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())


def _cut(
    memory: torch.Tensor, first: tuple[int, int], second: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two matrices from the front of a flat stretch of memory, and what is left of it."""
    middle = math.prod(first)
    end = middle + math.prod(second)
    return memory[:middle].view(first), memory[middle:end].view(second), memory[end:]


def _tensor(data: memoryview, entry: TensorEntry) -> torch.Tensor:
    dtype = _DTYPES[entry.dtype]
    if not entry.num_elements:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype, count=entry.num_elements, offset=entry.begin).view(entry.shape)


def _violation(code: str, subject: str, found: str, expected: str, message: str) -> Violation:
    return Violation(code=code, subject=subject, found=found, expected=expected, message=message)
