"""The spec of a base model: the modules that adapters may target, with their shapes."""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from shared.errors import FieldViolation, InvalidRequestError
from shared.ids import Digest, digest_of

MAX_MODULES = 100_000


class ModuleKind(StrEnum):
    """What a module computes."""

    LINEAR = "linear"
    EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True)
class BaseModule:
    """One module: a linear `[out_features, in_features]` or an embedding of `in_features` rows."""

    path: str
    kind: ModuleKind
    in_features: int
    out_features: int


@dataclass(frozen=True)
class BaseSpec:
    """What adapters are trained on; two workers with the same digest can serve the same adapters."""

    name: str
    """Public name, for example `HuggingFaceTB/SmolLM2-135M-Instruct`; not part of the digest."""
    model_type: str
    weights_fingerprint: str
    """SHA-256 over every parameter's name, shape, type and a sample of its values."""
    modules: tuple[BaseModule, ...]
    """In layer order."""

    def canonical_json(self) -> bytes:
        """The bytes whose SHA-256 is the digest."""
        document: dict[str, Any] = {
            "format": "hotslot.base/1",
            "model_type": self.model_type,
            "modules": [[m.path, m.kind.value, m.in_features, m.out_features] for m in self.modules],
            "weights_fingerprint": self.weights_fingerprint,
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    @property
    def digest(self) -> Digest:
        """Identity of the base model."""
        return digest_of(self.canonical_json())

    def by_path(self) -> dict[str, BaseModule]:
        """The modules by path."""
        return {module.path: module for module in self.modules}


def check_spec(spec: BaseSpec) -> None:
    """Check what the types cannot; raises InvalidRequestError with every field at fault."""
    problems: list[FieldViolation] = []
    if not spec.name:
        problems.append(FieldViolation("name", "must not be empty"))
    if not spec.model_type:
        problems.append(FieldViolation("model_type", "must not be empty"))
    if not spec.modules:
        problems.append(FieldViolation("modules", "must not be empty"))
    if len(spec.modules) > MAX_MODULES:
        problems.append(FieldViolation("modules", f"found {len(spec.modules)}, at most {MAX_MODULES}"))
    seen: set[str] = set()
    for index, module in enumerate(spec.modules):
        if not module.path or module.path in seen:
            problems.append(FieldViolation(f"modules[{index}].path", f"{module.path!r} is empty or stands twice"))
        seen.add(module.path)
        if module.in_features <= 0 or module.out_features <= 0:
            problems.append(FieldViolation(f"modules[{index}]", f"{module.path!r} has a size that is not positive"))
    if problems:
        raise InvalidRequestError(problems)
