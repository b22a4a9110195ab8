"""From a weights blob to an adapter in host memory, checked against what this worker can serve.

Shapes: I in_features, O out_features, R the module's rank, and one more where it has a bias.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from shared.errors import (
    BaseModelMismatchError,
    InvalidAdapterError,
    RankTooLargeError,
    UnsupportedAdapterError,
    Violation,
)
from shared.ids import Digest
from shared.manifest import LORA_A, LORA_B, LORA_B_BIAS, AdapterModule, Manifest
from worker_service.model.targets import ALL_LINEAR


@dataclass(frozen=True, slots=True)
class HostModule:
    """One module's low-rank pair, in the model's element type."""

    a_RI: torch.Tensor
    b_RO: torch.Tensor
    """B transposed, as slots keep it."""
    scaling: float
    has_bias: bool = False
    """Whether the last rank is a bias: its input is 1 in place of A's product, which is 0 there."""

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


@dataclass(frozen=True)
class SlotLayout:
    """What adapters must fit into."""

    base_model_digest: Digest
    shapes: dict[str, tuple[int, int]]
    """(in_features, out_features) of every module with slots, by path, in layer order."""
    max_rank: int
    total_ranks: int
    """Of all slots together."""
    target_modules: tuple[str, ...]
    """The setting that chose the modules."""
    dtype: torch.dtype
    pin_memory: bool
    """Page-locked host memory, so that copies to a GPU run beside computation."""
    without_slots: Mapping[str, str] = field(default_factory=dict)
    """Linears that cannot have slots, by path: what they are in the loaded model."""


class WeightsDecoder:
    """Decodes weights blobs for one layout."""

    def __init__(self, layout: SlotLayout) -> None:
        self._layout = layout

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
        tensors = _read(manifest, blob)
        modules: dict[str, HostModule] = {}
        violations: list[Violation] = []
        for module in manifest.modules:
            decoded = self._decode_module(module, tensors, violations)
            if decoded is not None:
                modules[module.path] = decoded
        violations.extend(
            _violation("UNEXPECTED_TENSOR", name, "a tensor", "none", f"{name} stands in no module of the manifest")
            for name in tensors
        )
        if violations:
            raise InvalidAdapterError(violations)
        size_bytes = sum(t.nbytes for m in modules.values() for t in (m.a_RI, m.b_RO))
        return HostAdapter(manifest.digest, max(m.num_ranks for m in modules.values()), size_bytes, modules)

    def _decode_module(
        self, module: AdapterModule, tensors: dict[str, torch.Tensor], violations: list[Violation]
    ) -> HostModule | None:
        in_features, out_features = self._layout.shapes[module.path]
        a_RI = self._take(tensors, module.path + LORA_A, (module.rank, in_features), violations)
        b_OR = self._take(tensors, module.path + LORA_B, (out_features, module.rank), violations)
        bias_O = None
        if module.has_bias:
            bias_O = self._take(tensors, module.path + LORA_B_BIAS, (out_features,), violations)
        if a_RI is None or b_OR is None or (module.has_bias and bias_O is None):
            return None
        if bias_O is not None:
            a_RI = torch.cat([a_RI, a_RI.new_zeros(1, in_features)])
            b_OR = torch.cat([b_OR, bias_O[:, None]], dim=1)
        return HostModule(self._owned(a_RI), self._owned(b_OR.T), module.scaling, module.has_bias)

    def _take(
        self,
        tensors: dict[str, torch.Tensor],
        name: str,
        shape: tuple[int, ...],
        violations: list[Violation],
    ) -> torch.Tensor | None:
        """Remove a tensor from those read, in the model's element type; notes what is wrong with it."""
        tensor = tensors.pop(name, None)
        if tensor is None or tuple(tensor.shape) != shape:
            found = "nothing" if tensor is None else str(tuple(tensor.shape))
            text = f"{name}: found {found}, expected {shape}"
            violations.append(_violation("SHAPE_MISMATCH", name, found, str(shape), text))
            return None
        converted = tensor.to(self._layout.dtype)
        if not bool(torch.isfinite(converted).all()):
            text = f"{name} has values that are not finite as {self._layout.dtype}"
            violations.append(_violation("NOT_FINITE", name, "NaN or infinity", "finite values", text))
            return None
        return converted

    def _owned(self, tensor: torch.Tensor) -> torch.Tensor:
        """A contiguous copy that does not keep the blob alive."""
        owned = tensor.clone(memory_format=torch.contiguous_format)
        return owned.pin_memory() if self._layout.pin_memory else owned


def _read(manifest: Manifest, blob: bytes | bytearray | memoryview) -> dict[str, torch.Tensor]:
    """All tensors of a blob, by name."""
    try:
        tensors: dict[str, torch.Tensor] = load(bytes(blob))
    except SafetensorError as exc:
        text = f"weights blob {manifest.weights_digest} cannot be read: {exc}"
        raise InvalidAdapterError(
            [_violation("BLOB_UNREADABLE", str(manifest.weights_digest), str(exc), "a safetensors file", text)]
        ) from exc
    return tensors


def _violation(code: str, subject: str, found: str, expected: str, message: str) -> Violation:
    return Violation(code=code, subject=subject, found=found, expected=expected, message=message)
