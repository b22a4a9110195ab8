"""Sorts a checkpoint's tensors: which part of which module of the base each of them is."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hotslot.errors import Violation
from hotslot.formats.base_spec import Absence, BaseModule, BaseSpec, ModuleKind
from hotslot.formats.loaded_modules import REASONS, is_other_part
from hotslot.formats.safetensors_header import Header, TensorEntry
from store_service.admission.keys import (
    ParsedKey,
    Role,
    candidate_paths,
    is_rotated_by_torchtune,
    parse_key,
    resolve_path,
)
from store_service.admission.layouts import ModulePlaces, layout_difference

_MAGNITUDE = "DoRA's magnitudes cannot be served exactly by slots yet"
_WHOLE = "whole parameters of the base (modules_to_save) would have to change with the adapter"
_OTHER_WORDS = (
    "its name is neither one of an adapter's part that is known here nor one of a parameter; convert the adapter to "
    "PEFT's names (<module>.lora_A.weight and <module>.lora_B.weight), and leave out what is no part of it"
)
_PARAMETER = re.compile(r"(?:^|\.)(?:layers|h|blocks?)\.\d+\.|\.(?:weight|bias)$")
"""Ways in which parameters of a base are named."""
_ADAPTER_WORDS = re.compile(
    r"(?:^|[._])(?:lora|dora|loha|lokr|hada|oft|ia3|vera|adapter|alpha)(?=[._]|$)", re.IGNORECASE
)
"""Words of adapters, which no parameter of a base is named by."""
_TOWER = (
    "it is of a vision or audio tower, or of what ties one to a text model, and the base has none; leave its tensors "
    "out where the text part alone is wanted, or name the multimodal base model"
)
_UNKNOWN_VALUES = (
    "whether it is a mere copy of the base's cannot be told, because the base model was registered without a digest "
    "of this module's values; start a worker of this version, which registers it, or save the adapter again with "
    "save_embedding_layers=False"
)


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
class FoundPart:
    """A part of an adapter in the checkpoint."""

    parsed: ParsedKey
    tensor: StoredTensor


@dataclass(frozen=True, slots=True)
class BaseCopy:
    """Parameters of the base that the checkpoint carries along: PEFT saves those of adapted embeddings and heads."""

    module: BaseModule
    entries: tuple[TensorEntry, ...]
    """The weight, then the bias."""


@dataclass(slots=True)
class CheckpointParts:
    """The tensors of a checkpoint, as far as the base has their modules."""

    by_path: dict[str, dict[Role, FoundPart]] = field(default_factory=dict)
    copies: dict[str, dict[Role, TensorEntry]] = field(default_factory=dict)
    resized: dict[str, dict[Role, TensorEntry]] = field(default_factory=dict)
    """Rows that the base has, too, of copies with added rows."""
    violations: list[Violation] = field(default_factory=list)
    unknown_paths: set[str] = field(default_factory=set)
    """Modules of which the base has nothing."""
    other_layouts: set[str] = field(default_factory=set)
    """Modules that the base has in another layout or by another name, or that are no part of a text model."""
    misnamed: set[str] = field(default_factory=set)
    """The base's own paths of those that it has by another name."""
    difference: str = ""
    """Clause on the base's modules in the place of the first unknown one; empty where they have none in common."""


def sort_tensors(header: Header, base: BaseSpec) -> CheckpointParts:
    """Every tensor under the module and role that its name says; what has no place becomes a violation."""
    parts = CheckpointParts()
    modules = base.by_path()
    places = ModulePlaces(modules)
    adapters: set[str] = set()
    for entry in header.tensors:
        parsed = parse_key(entry.name)
        if parsed.role is Role.MAGNITUDE:
            parts.violations.append(_unsupported(entry, parsed.role, _MAGNITUDE))
            continue
        path = resolve_path(parsed.path, modules)
        if parsed.role in (Role.BASE_WEIGHT, Role.BASE_BIAS):
            _sort_copy(entry, parsed.role, modules.get(path or ""), base, parts)
        elif path is None:
            _note_unknown(entry, parsed, base, modules, places, parts)
        elif path != parsed.path and is_rotated_by_torchtune(parsed.path) and "self_attn" in path:
            expected = "torchtune's export in PEFT's format (adapter_model.safetensors)"
            problem = "torchtune orders the rows of this projection differently"
            violation = Violation.of("UNSUPPORTED_LAYOUT", entry.name, "torchtune's own", expected, problem)
            parts.violations.append(violation)
        else:
            adapters.add(parsed.adapter)
            _sort_part(entry, parsed, path, parts)
    if len(adapters - {""}) > 1:
        found_names = ", ".join(repr(name) for name in sorted(adapters))
        problem = "the file mixes several adapters"
        parts.violations.append(Violation.of("MIXED_ADAPTERS", "the checkpoint", found_names, "one adapter", problem))
    return parts


def base_copies(
    copies: Mapping[str, Mapping[Role, TensorEntry]], modules: Mapping[str, BaseModule]
) -> tuple[BaseCopy, ...]:
    """The copies of the base's parameters whose values are still to be compared."""
    roles = (Role.BASE_WEIGHT, Role.BASE_BIAS)
    return tuple(
        BaseCopy(modules[path], tuple(found[role] for role in roles if role in found)) for path, found in copies.items()
    )


def _sort_copy(
    entry: TensorEntry, role: Role, module: BaseModule | None, base: BaseSpec, parts: CheckpointParts
) -> None:
    if module is None or module not in (base.token_embedding, base.head):
        is_foreign = module is None and (_ADAPTER_WORDS.search(entry.name) or not _PARAMETER.search(entry.name))
        parts.violations.append(
            _unsupported(entry, "a name that is not known", _OTHER_WORDS)
            if is_foreign
            else _unsupported(entry, role, _WHOLE)
        )
        return
    if not module.values_digest:
        parts.violations.append(_unsupported(entry, role, _UNKNOWN_VALUES))
        return
    rows, columns = module.out_features, module.in_features
    if module.kind is ModuleKind.EMBEDDING:
        rows, columns = columns, rows
    shape = (rows, columns) if role is Role.BASE_WEIGHT else (rows,)
    if entry.shape != shape:
        parts.violations.append(_unsupported(entry, role, _other_rows(entry.shape, shape)))
        if entry.shape[1:] == shape[1:] and entry.shape[0] > rows:
            parts.resized.setdefault(module.path, {})[role] = replace(entry, shape=shape, end=_end_of(entry, rows))
    elif parts.copies.setdefault(module.path, {}).setdefault(role, entry) is not entry:
        parts.violations.append(_duplicate(entry, parts.copies[module.path][role], role, module.path))


def _end_of(entry: TensorEntry, num_rows: int) -> int:
    return entry.begin + entry.size_bytes // entry.shape[0] * num_rows


def _other_rows(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """Names the rows that a copy has beyond the base's, or lacks."""
    if found[1:] != expected[1:] or len(found) != len(expected):
        return f"it is not the base's, whose shape is {list(expected)}"
    begin, end = sorted((found[0], expected[0]))
    rows = f"row {begin}" if end - begin == 1 else f"rows {begin} to {end - 1}"
    if found[0] < expected[0]:
        return f"{rows} of the base's {expected[0]} are missing: the vocabulary was cut"
    return (
        f"{rows} are added to the base's {expected[0]}: the vocabulary was resized, for tokens without a row in the "
        "base; train without added tokens, or register the resized model as a base of its own"
    )


def _sort_part(entry: TensorEntry, parsed: ParsedKey, path: str, parts: CheckpointParts) -> None:
    found = FoundPart(parsed, StoredTensor(entry, parsed.is_transposed))
    other = parts.by_path.setdefault(path, {}).setdefault(parsed.role, found)
    if other is not found:
        parts.violations.append(_duplicate(entry, other.tensor.entry, parsed.role, path))


def _note_unknown(
    entry: TensorEntry,
    parsed: ParsedKey,
    base: BaseSpec,
    modules: Mapping[str, BaseModule],
    places: ModulePlaces,
    parts: CheckpointParts,
) -> None:
    if parsed.path in parts.unknown_paths or parsed.path in parts.other_layouts:
        return
    if is_other_part(parsed.path) and any(m.absence is Absence.OTHER_PART for m in base.modules):
        expected = "modules of the text model"
        problem = f"it cannot be adapted, because {REASONS[Absence.OTHER_PART]}"
        parts.violations.append(Violation.of("UNSUPPORTED_MODULE", entry.name, parsed.path, expected, problem))
        return
    expected = f"a module of {base.name}"
    differences = (layout_difference(path, base, modules, places) for path in candidate_paths(parsed.path))
    difference = next((found for found in differences if found), "")
    if difference:
        parts.other_layouts.add(parsed.path)
        problem = f"{difference}, so its parts cannot be applied as they are"
        parts.violations.append(Violation.of("UNSUPPORTED_LAYOUT", entry.name, parsed.path, expected, problem))
    elif is_other_part(parsed.path):
        parts.other_layouts.add(parsed.path)
        parts.violations.append(Violation.of("UNKNOWN_MODULE", entry.name, parsed.path, expected, _TOWER))
    elif (inner := _inside(parsed.path, modules)) is not None:
        wrapper, path = inner
        parts.other_layouts.add(parsed.path)
        parts.misnamed.add(path)
        problem = (
            f"{wrapper!r} stands before the name of {path}, and is no wrapper that is known here; rename the tensors "
            "without it, or save the adapter from the model that is inside"
        )
        parts.violations.append(Violation.of("UNSUPPORTED_NAME", entry.name, parsed.path, expected, problem))
    else:
        parts.unknown_paths.add(parsed.path)
        instead = next((found for path in candidate_paths(parsed.path) if (found := places.instead(path))), "")
        problem = f"the base has no such module{': ' if instead else ''}{instead}"
        parts.difference = parts.difference or (f"it has no {parsed.path}: {instead}" if instead else "")
        parts.violations.append(Violation.of("UNKNOWN_MODULE", entry.name, parsed.path, expected, problem))


def _inside(path: str, modules: Mapping[str, BaseModule]) -> tuple[str, str] | None:
    """Words before the name of a module of the base, and that module; None where a path does not end with one."""
    words = path.split(".")
    for number in range(1, len(words)):
        found = resolve_path(".".join(words[number:]), modules)
        if found is not None:
            return ".".join(words[:number]) + ".", found
    return None


def _unsupported(entry: TensorEntry, found: str, reason: str) -> Violation:
    expected = "lora_A and lora_B of linear modules, lora_embedding_A and lora_embedding_B of the embedding"
    return Violation.of("UNSUPPORTED_TENSOR", entry.name, str(found), expected, reason)


def _duplicate(entry: TensorEntry, other: TensorEntry, role: Role, path: str) -> Violation:
    problem = f"{role.value} of {path} is there twice"
    return Violation.of("DUPLICATE_TENSOR", entry.name, other.name, "one tensor", problem)
