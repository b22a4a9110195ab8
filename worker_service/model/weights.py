"""From a weights blob to an adapter in host memory, checked against what this worker can serve.

Shapes: I in_features, O out_features, R the module's rank.
"""

from dataclasses import dataclass

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
from shared.manifest import LORA_A, LORA_B, Manifest


@dataclass(frozen=True, slots=True)
class HostModule:
    """One module's low-rank pair, in the model's element type."""

    a_RI: torch.Tensor
    b_OR: torch.Tensor
    scaling: float


@dataclass(frozen=True, slots=True)
class HostAdapter:
    """A version in host memory; an AdapterWeights."""

    digest: Digest
    max_rank: int
    size_bytes: int
    modules: dict[str, HostModule]


@dataclass(frozen=True)
class SlotLayout:
    """What adapters must fit into."""

    base_model_digest: Digest
    shapes: dict[str, tuple[int, int]]
    """(in_features, out_features) of every module with slots, by path, in layer order."""
    max_rank: int
    dtype: torch.dtype
    pin_memory: bool
    """Page-locked host memory, so that copies to a GPU run beside computation."""


class WeightsDecoder:
    """Decodes weights blobs for one layout."""

    def __init__(self, layout: SlotLayout) -> None:
        self._layout = layout

    def decode(self, manifest: Manifest, blob: bytes | bytearray | memoryview) -> HostAdapter:
        """Read a blob whose digest was verified.

        Raises BaseModelMismatchError, RankTooLargeError, UnsupportedAdapterError (a targeted module has no slots) and
        InvalidAdapterError (the blob is not what its manifest says, or is not finite in the model's element type).
        """
        self._check(manifest)
        tensors = _read(manifest, blob)
        modules: dict[str, HostModule] = {}
        violations: list[Violation] = []
        for module in manifest.modules:
            in_features, out_features = self._layout.shapes[module.path]
            a_RI = self._take(tensors, module.path + LORA_A, (module.rank, in_features), violations)
            b_OR = self._take(tensors, module.path + LORA_B, (out_features, module.rank), violations)
            if a_RI is not None and b_OR is not None:
                modules[module.path] = HostModule(a_RI, b_OR, module.scaling)
        violations.extend(
            _violation("UNEXPECTED_TENSOR", name, "a tensor", "none", f"{name} stands in no module of the manifest")
            for name in tensors
        )
        if violations:
            raise InvalidAdapterError(violations)
        size_bytes = sum(t.nbytes for m in modules.values() for t in (m.a_RI, m.b_OR))
        return HostAdapter(manifest.digest, manifest.max_rank, size_bytes, modules)

    def _check(self, manifest: Manifest) -> None:
        layout = self._layout
        base = manifest.base_model_digest
        if base != layout.base_model_digest:
            text = f"the adapter is for base model {base}, this worker serves {layout.base_model_digest}"
            raise BaseModelMismatchError(
                [_violation("BASE_MODEL_MISMATCH", "base_model_digest", base, layout.base_model_digest, text)]
            )
        rank = manifest.max_rank
        if rank > layout.max_rank:
            text = f"the adapter has rank {rank}, this worker takes at most {layout.max_rank}"
            raise RankTooLargeError(
                [_violation("RANK_TOO_LARGE", "max_rank", str(rank), f"at most {layout.max_rank}", text)]
            )
        unserved = [
            _violation("TARGET_NOT_SERVED", m.path, "a target", "a module with slots", f"{m.path} has no slots here")
            for m in manifest.modules
            if m.path not in layout.shapes
        ]
        if unserved:
            raise UnsupportedAdapterError(unserved)

    def _take(
        self,
        tensors: dict[str, torch.Tensor],
        name: str,
        shape: tuple[int, int],
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
        owned = converted.clone() if converted is tensor else converted
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
