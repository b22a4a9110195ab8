"""Layouts of a base's modules: fused where an adapter has them apart, apart where it has them fused."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
from hotslot.formats.loaded_modules import query_and_key_rows

_FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "Wqkv": ("q_proj", "k_proj", "v_proj"),
    "W_pack": ("q_proj", "k_proj", "v_proj"),
    "c_attn": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
_BLOCKS = ("self_attn", "attention", "attn", "self_attention", "mlp", "feed_forward")
_EXPERTS = ("experts", "shared_expert", "shared_experts", "block_sparse_moe")
_DENSE_BLOCKS = ("mlp", "feed_forward")
_MAX_SHOWN = 8
"""Names in one message."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """Linears that some models have as one, whose rows are those of the parts, one part after the other."""

    block: str
    """The last name of the module that holds them."""
    fused: str
    parts: tuple[str, ...]
    fused_types: frozenset[str]
    """Model types that have them as one, with their rows in this order."""


FUSIONS = (
    Fusion("self_attn", "qkv_proj", ("q_proj", "k_proj", "v_proj"), frozenset({"phi3"})),
    Fusion("mlp", "gate_up_proj", ("gate_proj", "up_proj"), frozenset({"phi3", "glm", "glm4"})),
)
"""As transformers 5 splits their outputs: `Phi3Attention`, `Phi3MLP`, `GlmMLP`, `Glm4MLP`. A test compares each with
linears apart."""


@dataclass(frozen=True, slots=True)
class Linears:
    """One place of a model where linears may be one, in both forms."""

    fused: BaseModule
    parts: tuple[BaseModule, ...]

    def rows(self) -> Mapping[str, range]:
        """The rows of the fused linear by the path of the part that they are."""
        found: dict[str, range] = {}
        begin = 0
        for part in self.parts:
            found[part.path] = range(begin, begin + part.out_features)
            begin += part.out_features
        return found


def fused_linears(fusion: Fusion, base: BaseSpec) -> list[Linears]:
    """The places where a base has them as one; empty where the order or the number of their rows is not known."""
    if fusion_obstacle(fusion, base):
        return []
    ending = f".{fusion.block}.{fusion.fused}"
    return [
        Linears(module, _parts_of(fusion, module, base))
        for module in base.modules
        if module.kind is ModuleKind.LINEAR and module.path.endswith(ending)
    ]


def split_linears(fusion: Fusion, base: BaseSpec) -> list[Linears]:
    """The places where a base has them apart, as heads of queries, keys and values, or gate and up, of equal sizes."""
    modules = base.by_path()
    found = []
    for first in base.modules:
        parent = first.path.removesuffix(f".{fusion.parts[0]}")
        if first.path == parent or not parent.endswith(f".{fusion.block}"):
            continue
        parts = [modules.get(f"{parent}.{name}") for name in fusion.parts]
        known = tuple(p for p in parts if p is not None and p.kind is ModuleKind.LINEAR)
        sizes = [part.out_features for part in known]
        is_alike = len({(part.in_features, part.absence) for part in known}) == 1
        if len(known) < len(parts) or not is_alike or sizes[0] % sizes[-1] or len(set(sizes[1:])) > 1:
            continue
        path = f"{parent}.{fusion.fused}"
        fused = BaseModule(path, ModuleKind.LINEAR, first.in_features, sum(sizes), absence=first.absence)
        found.append(Linears(fused, known))
    return found


def fusion_obstacle(fusion: Fusion, base: BaseSpec) -> str:
    """Reason for which adapters on the parts cannot be served by a base that has them as one, in a clause; empty where
    they can."""
    ending = f".{fusion.block}.{fusion.fused}"
    if base.model_type not in fusion.fused_types:
        return f"the order of the rows of a {base.model_type}'s {fusion.fused} is not known"
    if len(fusion.parts) == 2:
        return ""
    rows = query_and_key_rows(base.details.attention if base.details is not None else {})
    if rows is None:
        return (
            f"how many heads {base.name} has is not known, because it was registered by an older version; start a "
            "worker of this version, or register it again"
        )
    num_rows = rows[0] + 2 * rows[1]
    others = (m for m in base.modules if m.path.endswith(ending) and m.out_features != num_rows)
    other = next(others, None)
    return f"{other.path} has {other.out_features} rows, and the base's heads {num_rows}" if other is not None else ""


class ModulePlaces:
    """A base's modules by where they are, for telling what it has where an adapter has something else."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = paths

    @cached_property
    def _names(self) -> Mapping[str, Sequence[str]]:
        """Names of the linears that a module holds."""
        found: dict[str, list[str]] = {}
        for path in self._paths:
            parent, _, name = path.rpartition(".")
            found.setdefault(parent, []).append(name)
        return found

    @cached_property
    def _experts(self) -> Mapping[str, str]:
        """A path inside of the experts that a block, or its layer, holds."""
        found: dict[str, str] = {}
        for path in self._paths:
            block, experts, _ = path.partition(".experts.")
            if experts:
                found.setdefault(block, path)
                found.setdefault(block.rpartition(".")[0], path)
        return found

    @property
    def has_experts(self) -> bool:
        """True for a mixture of experts."""
        return bool(self._experts)

    def expert_instead(self, path: str) -> str:
        """A module of the experts that the base has where an adapter has one dense linear; empty where it has none."""
        block = path.rpartition(".")[0]
        if block.rpartition(".")[2] not in _DENSE_BLOCKS:
            return ""
        return self._experts.get(block) or self._experts.get(block.rpartition(".")[0], "")

    def instead(self, path: str) -> str:
        """The linears beside the place of a missing module, in a clause; empty where there is no such place."""
        parent = path.rpartition(".")[0]
        names = self._names.get(parent, ()) if parent else ()
        more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
        return f"its {parent} has {', '.join(names[:_MAX_SHOWN])}{more}" if names else ""


def layout_difference(path: str, base: BaseSpec, base_paths: Collection[str], places: ModulePlaces) -> str:
    """Difference between the base and an adapter that has this module, in a clause; empty where nothing is known."""
    parent, _, leaf = path.rpartition(".")
    above = parent.rpartition(".")[0]
    for fused, split in _FUSED.items():
        for block in (parent, *(f"{above}.{block}" for block in _BLOCKS)):
            if leaf in split and f"{block}.{fused}" in base_paths:
                others = ", ".join(split)
                obstacle = _obstacle(f"{block}.{fused}", base)
                reason = f" ({obstacle})" if obstacle else ""
                return f"the base has {others} as one linear, {block}.{fused}, and the adapter has them apart{reason}"
            if leaf == fused and f"{block}.{split[0]}" in base_paths:
                names = ", ".join(split)
                return f"the base has {names} apart (as {block}.{split[0]}), and the adapter has them as one linear"
    if not set(path.split(".")).isdisjoint(_EXPERTS):
        if places.has_experts:
            return "the base has its experts under other names, or as one parameter for all of them"
        return "the base has no experts (is it the dense model of the same family?)"
    if expert := places.expert_instead(path):
        return f"the base is a mixture of experts, with {expert} and others where the adapter has one dense linear"
    return ""


def _obstacle(fused_path: str, base: BaseSpec) -> str:
    for fusion in FUSIONS:
        if fused_path.endswith(f".{fusion.block}.{fusion.fused}"):
            return fusion_obstacle(fusion, base)
    return f"the order of the rows of a {base.model_type}'s {fused_path.rpartition('.')[2]} is not known"


def _parts_of(fusion: Fusion, fused: BaseModule, base: BaseSpec) -> tuple[BaseModule, ...]:
    if len(fusion.parts) == 2:
        sizes = [fused.out_features // 2] * 2
    else:
        rows = query_and_key_rows(base.details.attention if base.details is not None else {})
        assert rows is not None, "an obstacle was asked for before"
        sizes = [rows[0], rows[1], rows[1]]
    parent = fused.path.removesuffix(fusion.fused)
    return tuple(
        BaseModule(parent + name, ModuleKind.LINEAR, fused.in_features, size, absence=fused.absence)
        for name, size in zip(fusion.parts, sizes, strict=True)
    )
