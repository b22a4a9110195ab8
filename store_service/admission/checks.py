"""Checks a checkpoint's tensors against its config and its base model, and plans the normalised form.

Every tensor must be a part of some targeted module, every part must have its counterpart, and every shape must
be what rank and base say. All violations are collected; a plan is complete only where there are none.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from hotslot.errors import Violation
from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
from hotslot.formats.loaded_modules import REASONS, completed, other_beginnings
from hotslot.formats.safetensors_header import Header
from store_service.admission.all_linear import all_linear
from store_service.admission.base_changes import check_base_changes
from store_service.admission.default_targets import with_defaults
from store_service.admission.keys import BACKBONES, HEAD_ALIASES, Role
from store_service.admission.lora_settings import LoraSettings
from store_service.admission.naming import check_naming
from store_service.admission.parts import CheckpointParts, FoundPart, base_copies
from store_service.admission.planned import AdapterPlan, PlannedModule, Tie
from store_service.admission.regrouping import read_parts, regrouped
from store_service.admission.settings import AdmissionLimits

WEIGHT_DTYPES = ("F32", "F16", "BF16")

_TRANSPOSED = "it lies transposed, as PEFT neither writes nor reads it; save it the other way round"
_PAIRS: Mapping[ModuleKind, tuple[Role, Role]] = {
    ModuleKind.LINEAR: (Role.A, Role.B),
    ModuleKind.EMBEDDING: (Role.EMBEDDING_A, Role.EMBEDDING_B),
}


def check_tensors(
    header: Header, settings: LoraSettings, base: BaseSpec, limits: AdmissionLimits
) -> tuple[AdapterPlan, list[Violation]]:
    """Plan of the adapter to publish, and every violation by names, shapes and types."""
    own_base = completed(base)
    parts, form = read_parts(header, own_base)
    base = form.base
    violations = parts.violations
    violations.extend(check_naming(parts, base))
    targets = with_defaults(settings.targets, base.model_type)
    if targets is None:
        problem = f"PEFT has no default for a {base.model_type}, so it could not load this either"
        violations.append(
            Violation.of("UNSUPPORTED_CONFIG", "target_modules", "null", "the names of the modules", problem)
        )
    else:
        settings = replace(settings, targets=targets)
    violations.extend(_check_targets(parts, settings, base))
    violations.extend(check_base_changes(settings, base, parts))
    planned: dict[str, PlannedModule] = {}
    num_misfits = len(parts.unknown_paths)
    num_modules = num_misfits + len(parts.by_path)
    beginning, others = other_beginnings(base, BACKBONES)
    for module in base.targets:
        if module.path not in parts.by_path:
            continue
        roles = parts.by_path[module.path]
        loaded_as = {other + module.path.removeprefix(beginning) for other in others}
        name = next((n for found in roles.values() if (n := found.parsed.path) in loaded_as), module.path)
        problems = list(_check_module(module, name, roles, settings, base, limits))
        num_misfits += any(p.code == "SHAPE_MISMATCH" and _TRANSPOSED not in p.message for p in problems)
        violations.extend(problems)
        if not problems:
            planned[module.path] = _plan(module, name, roles, settings)
    if num_misfits * 2 > num_modules:
        violations.insert(0, _other_base(num_misfits, num_modules, settings, base, parts.difference))
    if not planned and not violations:
        expected = "at least one pair of lora_A and lora_B"
        violations.append(
            Violation.of("NO_ADAPTER", "the checkpoint", f"{len(header.tensors)} tensors", expected, "it is empty")
        )
    modules, problems = regrouped(planned, form, own_base, limits.max_rank)
    violations.extend(problems)
    tied = [planned[path] for path in _tied_paths(settings, base) if path in planned]
    tie = Tie(*tied) if len(tied) == 2 else None
    copies, resized = (base_copies(found, base.by_path()) for found in (parts.copies, parts.resized))
    return AdapterPlan(modules, copies, tie, resized), violations


def _tied_paths(settings: LoraSettings, base: BaseSpec) -> tuple[str, ...]:
    """The embedding and the head, where PEFT gives both one adapter (tuners/lora/model.py, `_add_targets_to_tie`)."""
    if not settings.ties_weights:
        return ()  # First, since finding the two ends looks at all modules.
    embedding, head = base.token_embedding, base.tied_head
    if embedding is None or head is None or not settings.targets.name_an_end():
        return ()
    return embedding.path, head.path


def _check_targets(found_parts: CheckpointParts, settings: LoraSettings, base: BaseSpec) -> Iterator[Violation]:
    """Config and tensors must name the same modules: PEFT would drop what only one of them names."""
    parts, targets, tied = found_parts.by_path, settings.targets, _tied_paths(settings, base)
    by_word = all_linear(base) if targets.all_linear else {}

    def include(path: str, name: str = "") -> bool | None:
        """Tell whether the module at a path is targeted, if its trainer called it by this name."""
        found = targets.include(name or path)
        return by_word.get(path) if found is None else found

    # Whatever names one of a tied pair means both, and PEFT saves both.
    is_tie_targeted = any(include(path) or path in parts for path in tied)
    for path, roles in parts.items():
        if targets.all_linear and any(found.parsed.path in HEAD_ALIASES for found in roles.values()):
            continue  # To the trainer that calls the head so it is one linear among all.
        raw_paths = [found.parsed.path for found in roles.values()]
        names = (*raw_paths, *(tied if path in tied else (path,)))
        if all(include(path, name) is False for name in names):
            problem = "the config does not target this module, so its trainer would not have applied it"
            yield Violation.of("MODULE_NOT_TARGETED", path, "tensors", "none, or the module in target_modules", problem)
    for module in base.targets:
        if module.absence is not None or module.path in found_parts.misnamed:
            continue
        is_targeted = is_tie_targeted if module.path in tied else include(module.path)
        if module.path not in parts and is_targeted:
            problem = "the config targets this module, but the checkpoint has nothing for it (is it cut off?)"
            yield Violation.of("MODULE_MISSING", module.path, "no tensors", _names(_PAIRS[module.kind]), problem)


def _plan(module: BaseModule, name: str, roles: Mapping[Role, FoundPart], settings: LoraSettings) -> PlannedModule:
    """`name` is what PEFT calls the module, which patterns are matched with."""
    a, b = (roles[role].tensor for role in _PAIRS[module.kind])
    bias = roles[Role.BIAS].tensor if Role.BIAS in roles else None
    return PlannedModule(module.path, a.shape[0], settings.scaling_of(name), a, b, bias)


def _check_module(
    module: BaseModule,
    name: str,
    roles: Mapping[Role, FoundPart],
    settings: LoraSettings,
    base: BaseSpec,
    limits: AdmissionLimits,
) -> Iterator[Violation]:
    if module.absence is not None:
        problem = f"it cannot be adapted, because {REASONS[module.absence]}"
        expected = "modules that the loaded model has"
        yield Violation.of("UNSUPPORTED_MODULE", module.path, "a target", expected, problem)
        return
    if module.kind is ModuleKind.EMBEDDING and module != base.token_embedding:
        problem = "of embeddings, only the one of tokens can be adapted"
        yield Violation.of("UNSUPPORTED_MODULE", module.path, module.kind.value, "the token embedding", problem)
    yield from _check_roles(module, roles, settings)
    has_shapes = True
    for role, found_tensor in roles.items():
        entry = found_tensor.tensor.entry
        if entry.dtype not in WEIGHT_DTYPES:
            expected = ", ".join(WEIGHT_DTYPES)
            yield Violation.of("BAD_DTYPE", entry.name, entry.dtype, expected, "its element type is not for weights")
        if entry.size_bytes > limits.max_tensor_bytes:
            expected = f"at most {limits.max_tensor_bytes} bytes"
            yield Violation.of("TENSOR_TOO_LARGE", entry.name, f"{entry.size_bytes} bytes", expected, "it is too large")
        num_axes, expected = (1, "a vector") if role is Role.BIAS else (2, "a matrix")
        if len(entry.shape) != num_axes or 0 in entry.shape:
            has_shapes = False
            problem = f"it is not {expected} with elements (was a sharded model saved without gathering it?)"
            yield Violation.of("BAD_SHAPE", entry.name, str(list(entry.shape)), expected, problem)
    if has_shapes:
        yield from _check_shapes(module, name, roles, settings, base, limits)


def _check_roles(module: BaseModule, roles: Mapping[Role, FoundPart], settings: LoraSettings) -> Iterator[Violation]:
    """Parts that the module's kind and the config ask for."""
    pair = _PAIRS[module.kind]
    for role in pair:
        if role not in roles:
            found = "only " + _names(roles)
            problem = "half of the pair is missing" if set(pair) & set(roles) else "its pair is missing"
            yield Violation.of("MISSING_TENSOR", f"{module.path}.{role.value}", found, _names(pair), problem)
    wanted = {*pair, Role.BIAS}
    for role, misplaced in roles.items():
        if role not in wanted:
            problem = f"it is no part of an adapter on {module.path}, which is of another kind"
            name, expected = misplaced.tensor.entry.name, f"parts of the kind {module.kind.value}"
            yield Violation.of("UNSUPPORTED_MODULE", name, role.value, expected, problem)
    bias = roles.get(Role.BIAS)
    if module.kind is ModuleKind.EMBEDDING and (settings.has_bias or bias):
        problem = "PEFT knows no bias on an embedding's B"
        yield Violation.of("UNSUPPORTED_CONFIG", "lora_bias", "true", "false with an embedding", problem)
    elif settings.has_bias and bias is None:
        expected = f"{module.path}.lora_B.bias"
        problem = "the config gives B a bias (lora_bias), but the checkpoint has none"
        yield Violation.of("MISSING_TENSOR", f"{module.path}.{Role.BIAS.value}", "no tensor", expected, problem)
    elif bias is not None and not settings.has_bias:
        problem = "the config gives B no bias (lora_bias), so its trainer would not have applied this"
        yield Violation.of("BIAS_NOT_CONFIGURED", bias.tensor.entry.name, "a tensor", "none, or lora_bias", problem)


def _check_shapes(
    module: BaseModule,
    own_name: str,
    roles: Mapping[Role, FoundPart],
    settings: LoraSettings,
    base: BaseSpec,
    limits: AdmissionLimits,
) -> Iterator[Violation]:
    rank = _rank_of(module, own_name, settings, base)
    role_a, role_b = _PAIRS[module.kind]
    # Sizes by axis; the axis of the rank is told apart, because another rank is another mistake.
    expectations: Mapping[Role, tuple[tuple[int, ...], int | None]] = {
        role_a: ((rank, module.in_features), 0),
        role_b: ((module.out_features, rank), 1),
        Role.BIAS: ((module.out_features,), None),
    }
    for role, found in roles.items():
        if role not in expectations:
            continue
        shape, name = found.tensor.shape, found.tensor.entry.name
        expected_shape, rank_axis = expectations[role]
        if shape != expected_shape and shape[::-1] == expected_shape:
            yield Violation.of("SHAPE_MISMATCH", name, str(list(shape)), str(list(expected_shape)), _TRANSPOSED)
            continue
        if any(size != shape[axis] for axis, size in enumerate(expected_shape) if axis != rank_axis):
            problem = f"its shape does not fit {module.path} of the base"
            yield Violation.of("SHAPE_MISMATCH", name, str(list(shape)), str(list(expected_shape)), problem)
        if rank_axis is None:
            continue
        stored_rank = shape[rank_axis]
        if stored_rank != rank:
            problem = "its rank is not the one that r and rank_pattern give"
            yield Violation.of("RANK_MISMATCH", name, f"rank {stored_rank}", f"rank {rank}", problem)
        elif stored_rank > limits.max_rank and role is role_a:
            expected = f"at most {limits.max_rank}"
            yield Violation.of("RANK_TOO_LARGE", name, f"rank {stored_rank}", expected, "its rank is too large")
    for raw_path in dict.fromkeys(found.parsed.path for found in roles.values()):
        theirs = settings.rank_of(raw_path), settings.scaling_of(raw_path)
        if theirs != (settings.rank_of(own_name), settings.scaling_of(own_name)):
            problem = "a rank or alpha pattern matches only one of the names that the module has"
            yield Violation.of("AMBIGUOUS_PATTERN", module.path, raw_path, "the same rank and alpha for both", problem)


def _rank_of(module: BaseModule, name: str, settings: LoraSettings, base: BaseSpec) -> int:
    """A tied head has the embedding's A and B, whatever rank its own scaling goes by (PEFT, `update_layer`)."""
    tied = _tied_paths(settings, base)
    return settings.rank_of(tied[0] if module.path in tied else name)


def _names(roles: Iterable[Role]) -> str:
    return " and ".join(role.value for role in roles)


def _other_base(
    num_misfits: int, num_modules: int, settings: LoraSettings, base: BaseSpec, difference: str
) -> Violation:
    made_for = f" (its config says {settings.base_model_name})" if settings.base_model_name else ""
    return Violation.of(
        "BASE_MODEL_MISMATCH",
        "the checkpoint",
        f"{num_misfits} of {num_modules} modules do not fit",
        f"an adapter for {base.name}",
        f"it was made for another base model{made_for}{'; ' if difference else ''}{difference}",
    )
