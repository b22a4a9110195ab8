"""Checks a checkpoint's tensors against its config and its base model, and plans the normalised form.

Every tensor must be a part of some targeted module, every part must have its counterpart, and every shape must
be what rank and base say. All violations are collected; a plan exists only where there are none.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from shared.base_spec import BaseModule, BaseSpec, ModuleKind
from shared.errors import Violation
from shared.safetensors_header import Header, TensorEntry
from store_service.admission.keys import ParsedKey, Role, is_rotated_by_torchtune, parse_key, resolve_path
from store_service.admission.lora_settings import LoraSettings
from store_service.admission.settings import AdmissionLimits

WEIGHT_DTYPES = ("F32", "F16", "BF16")

_UNSUPPORTED_ROLES: Mapping[Role, str] = {
    Role.BIAS: "a bias on B (lora_bias) is not served yet",
    Role.EMBEDDING_A: "adapters on embeddings are not served yet",
    Role.EMBEDDING_B: "adapters on embeddings are not served yet",
    Role.MAGNITUDE: "DoRA's magnitudes cannot be served exactly by slots yet",
    Role.BASE_WEIGHT: "whole parameters of the base (modules_to_save) would have to change with the adapter",
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of the checkpoint, and how it lies there."""

    entry: TensorEntry
    is_transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape as PEFT would have it."""
        return tuple(reversed(self.entry.shape)) if self.is_transposed else self.entry.shape


@dataclass(frozen=True, slots=True)
class PlannedModule:
    """One module that the adapter will change."""

    path: str
    rank: int
    scaling: float
    a: StoredTensor
    b: StoredTensor


@dataclass(frozen=True, slots=True)
class _Found:
    parsed: ParsedKey
    tensor: StoredTensor


def check_tensors(
    header: Header, settings: LoraSettings, base: BaseSpec, limits: AdmissionLimits
) -> tuple[tuple[PlannedModule, ...], list[Violation]]:
    """The modules to publish in the base's layer order, and everything that speaks against it."""
    violations: list[Violation] = []
    modules = base.by_path()
    parts = _assign(header.tensors, modules, base, violations)
    violations.extend(_check_targets(parts, settings, base))
    planned: list[PlannedModule] = []
    num_misfits = sum(violation.code == "UNKNOWN_MODULE" for violation in violations)
    num_modules = num_misfits + len(parts)
    for module in base.modules:
        if module.path not in parts:
            continue
        problems = list(_check_module(module, parts[module.path], settings, limits))
        num_misfits += any(problem.code == "SHAPE_MISMATCH" for problem in problems)
        violations.extend(problems)
        if not problems:
            a, b = parts[module.path][Role.A], parts[module.path][Role.B]
            planned.append(
                PlannedModule(
                    module.path,
                    a.tensor.shape[0],
                    settings.scaling_of(module.path),
                    a.tensor,
                    b.tensor,
                )
            )
    if num_misfits * 2 > num_modules:
        violations.insert(0, _other_base(num_misfits, num_modules, settings, base))
    if not planned and not violations:
        expected = "at least one pair of lora_A and lora_B"
        violations.append(
            Violation.of("NO_ADAPTER", "the checkpoint", f"{len(header.tensors)} tensors", expected, "it is empty")
        )
    return tuple(planned), violations


def _assign(
    tensors: Iterable[TensorEntry], modules: Mapping[str, BaseModule], base: BaseSpec, violations: list[Violation]
) -> dict[str, dict[Role, _Found]]:
    """Every tensor under the module and role that its name says, as far as the base has that module."""
    parts: dict[str, dict[Role, _Found]] = {}
    adapters: set[str] = set()
    unknown: set[str] = set()
    for entry in tensors:
        parsed = parse_key(entry.name)
        if parsed.role in _UNSUPPORTED_ROLES:
            expected = "lora_A and lora_B of linear modules"
            reason = _UNSUPPORTED_ROLES[parsed.role]
            violations.append(Violation.of("UNSUPPORTED_TENSOR", entry.name, parsed.role.value, expected, reason))
            continue
        path = resolve_path(parsed.path, modules)
        if path is None:
            if parsed.path not in unknown:
                unknown.add(parsed.path)
                expected = f"a module of {base.name}"
                violations.append(
                    Violation.of("UNKNOWN_MODULE", entry.name, parsed.path, expected, "the base has no such module")
                )
            continue
        if path != parsed.path and is_rotated_by_torchtune(parsed.path) and "self_attn" in path:
            expected = "torchtune's export in PEFT's format (adapter_model.safetensors)"
            problem = "torchtune orders the rows of this projection differently"
            violations.append(Violation.of("UNSUPPORTED_LAYOUT", entry.name, "torchtune's own", expected, problem))
            continue
        adapters.add(parsed.adapter)
        found = _Found(parsed, StoredTensor(entry, parsed.is_transposed))
        other = parts.setdefault(path, {}).setdefault(parsed.role, found)
        if other is not found:
            problem = f"{parsed.role.value} of {path} is there twice"
            violations.append(
                Violation.of("DUPLICATE_TENSOR", entry.name, other.tensor.entry.name, "one tensor", problem)
            )
    if len(adapters) > 1:
        found_names = ", ".join(repr(name) for name in sorted(adapters))
        problem = "the file mixes several adapters"
        violations.append(Violation.of("MIXED_ADAPTERS", "the checkpoint", found_names, "one adapter", problem))
    return parts


def _check_targets(
    parts: Mapping[str, Mapping[Role, _Found]], settings: LoraSettings, base: BaseSpec
) -> Iterator[Violation]:
    """Config and tensors must name the same modules: PEFT would drop what only one of them names."""
    targets = settings.targets
    for path, roles in parts.items():
        raw_path = next(iter(roles.values())).parsed.path
        if targets.include(path) is False and targets.include(raw_path) is False:
            problem = "the config does not target this module, so its trainer would not have applied it"
            yield Violation.of("MODULE_NOT_TARGETED", path, "tensors", "none, or the module in target_modules", problem)
    for module in base.modules:
        if module.path not in parts and targets.include(module.path):
            problem = "the config targets this module, but the checkpoint has nothing for it (is it cut off?)"
            yield Violation.of("MODULE_MISSING", module.path, "no tensors", "lora_A and lora_B", problem)


def _check_module(
    module: BaseModule, roles: Mapping[Role, _Found], settings: LoraSettings, limits: AdmissionLimits
) -> Iterator[Violation]:
    for role in (Role.A, Role.B):
        if role not in roles:
            found = "only " + ", ".join(present.value for present in roles)
            problem = "half of the pair is missing"
            yield Violation.of("MISSING_TENSOR", f"{module.path}.{role.value}", found, "lora_A and lora_B", problem)
    if module.kind is not ModuleKind.LINEAR:
        problem = "only linear modules can be adapted"
        yield Violation.of("UNSUPPORTED_MODULE", module.path, module.kind.value, ModuleKind.LINEAR.value, problem)
    is_flat = True
    for found_tensor in roles.values():
        entry = found_tensor.tensor.entry
        if entry.dtype not in WEIGHT_DTYPES:
            expected = ", ".join(WEIGHT_DTYPES)
            yield Violation.of("BAD_DTYPE", entry.name, entry.dtype, expected, "its element type is not for weights")
        if entry.size_bytes > limits.max_tensor_bytes:
            expected = f"at most {limits.max_tensor_bytes} bytes"
            yield Violation.of("TENSOR_TOO_LARGE", entry.name, f"{entry.size_bytes} bytes", expected, "it is too large")
        if len(entry.shape) != 2 or 0 in entry.shape:
            is_flat = False
            problem = "it is no matrix with elements (was a sharded model saved without gathering it?)"
            yield Violation.of("BAD_SHAPE", entry.name, str(list(entry.shape)), "a matrix", problem)
    if is_flat:
        yield from _check_shapes(module, roles, settings, limits)


def _check_shapes(
    module: BaseModule, roles: Mapping[Role, _Found], settings: LoraSettings, limits: AdmissionLimits
) -> Iterator[Violation]:
    rank = settings.rank_of(module.path)
    for role, found in roles.items():
        shape, name = found.tensor.shape, found.tensor.entry.name
        expected_shape = [rank, module.in_features] if role is Role.A else [module.out_features, rank]
        stored_rank = shape[0] if role is Role.A else shape[1]
        features = (shape[1], module.in_features) if role is Role.A else (shape[0], module.out_features)
        if features[0] != features[1]:
            problem = f"its shape does not fit {module.path} of the base"
            yield Violation.of("SHAPE_MISMATCH", name, str(list(shape)), str(expected_shape), problem)
        if stored_rank != rank:
            problem = "its rank is not the one that r and rank_pattern give"
            yield Violation.of("RANK_MISMATCH", name, f"rank {stored_rank}", f"rank {rank}", problem)
        elif stored_rank > limits.max_rank and role is Role.A:
            expected = f"at most {limits.max_rank}"
            yield Violation.of("RANK_TOO_LARGE", name, f"rank {stored_rank}", expected, "its rank is too large")
    raw_path = next(iter(roles.values())).parsed.path
    if settings.rank_of(raw_path) != rank or settings.scaling_of(raw_path) != settings.scaling_of(module.path):
        problem = "a rank or alpha pattern matches only one of the names that the module has"
        yield Violation.of("AMBIGUOUS_PATTERN", module.path, raw_path, "the same rank and alpha for both", problem)


def _other_base(num_misfits: int, num_modules: int, settings: LoraSettings, base: BaseSpec) -> Violation:
    made_for = f" (its config says {settings.base_model_name})" if settings.base_model_name else ""
    return Violation.of(
        "BASE_MODEL_MISMATCH",
        "the checkpoint",
        f"{num_misfits} of {num_modules} modules do not fit",
        f"an adapter for {base.name}",
        f"it was made for another base model{made_for}",
    )
