"""Adapters on linears apart for a base that has them as one, and the reverse, where that is exact.

A checkpoint is checked against the base in its trainer's form, so that names, targets and patterns mean what they
meant there. Then parts become one LoRA whose A is theirs, one below the other, and whose B has each part's in its rows
and columns, zeros elsewhere; or each part gets the whole A, and its rows of B.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from hotslot.errors import Violation
from hotslot.formats.base_spec import BaseModule, BaseSpec
from hotslot.formats.safetensors_header import Header
from store_service.admission.keys import resolve_path
from store_service.admission.layouts import FUSIONS, Linears, fused_linears, split_linears
from store_service.admission.parts import CheckpointParts, StoredTensor, sort_tensors
from store_service.admission.planned import (
    Block,
    PlannedModule,
    ServedModule,
    WrittenTensor,
    as_stored,
    rows_of,
    stacked,
)

_MAX_FACTOR = 2.0**32
"""Beyond it, products of ordinary values would leave what an element type holds."""


@dataclass(frozen=True)
class TrainersForm:
    """The base as an adapter's trainer had it: the same maths, with some linears fused or apart."""

    base: BaseSpec
    joined: tuple[Linears, ...] = ()
    """Places where the trainer had parts, and the base has one linear."""
    parted: tuple[Linears, ...] = ()
    """Places where the trainer had one linear, and the base has parts."""


def read_parts(header: Header, base: BaseSpec) -> tuple[CheckpointParts, TrainersForm]:
    """A checkpoint's tensors, sorted by the modules of the base in the form that the trainer had."""
    parts = sort_tensors(header, base)
    form = _form_of(parts.other_layouts, base)
    if form.base is base:
        return parts, form
    other = sort_tensors(header, form.base)
    modules = base.by_path()
    both = [path for path in sorted(other.other_layouts) if resolve_path(path, modules) is not None]
    if not both:
        return other, form
    problem = "the checkpoint has the same projections both as one linear and apart"
    expected = "one of the two throughout"
    parts.violations.append(Violation.of("UNSUPPORTED_LAYOUT", both[0], "both", expected, problem))
    return parts, TrainersForm(base)


def regrouped(
    planned: Mapping[str, PlannedModule], form: TrainersForm, base: BaseSpec, max_rank: int
) -> tuple[tuple[ServedModule, ...], list[Violation]]:
    """The base's modules, in its order, that do what the trainer's did, and why some of them cannot be."""
    joined = {linears.fused.path: linears for linears in form.joined}
    parted = {part.path: linears for linears in form.parted for part in linears.parts}
    served: list[ServedModule] = []
    violations: list[Violation] = []
    for module in base.targets:
        if module.path in joined:
            linears = joined[module.path]
            found = [planned[part.path] for part in linears.parts if part.path in planned]
            problems = [*_check_scalings(module, found), *_check_rank(module, found, max_rank)]
            violations.extend(problems)
            if found and not problems:
                served.append(_joined(linears, found))
        elif module.path in parted:
            linears = parted[module.path]
            if linears.fused.path in planned:
                served.append(_part(planned[linears.fused.path], module, linears.rows()[module.path]))
        elif module.path in planned:
            served.append(as_stored(planned[module.path]))
    return tuple(served), violations


def _form_of(other_layouts: Collection[str], base: BaseSpec) -> TrainersForm:
    """With each kind of linears in the other form where that has modules of these paths."""
    form = TrainersForm(base)
    for fusion in FUSIONS if other_layouts else ():
        joined = tuple(fused_linears(fusion, base))
        parted = () if joined else tuple(split_linears(fusion, base))
        theirs = {part.path for linears in joined for part in linears.parts}
        theirs |= {linears.fused.path for linears in parted}
        if any(resolve_path(path, theirs) is not None for path in other_layouts):
            changed = {linears.fused.path: linears.parts for linears in joined}
            changed |= {part.path: () for linears in parted for part in linears.parts}
            changed |= {linears.parts[0].path: (linears.fused,) for linears in parted}
            other_base = _with_modules(form.base, changed, joined + parted)
            form = TrainersForm(other_base, form.joined + joined, form.parted + parted)
    return form


def _with_modules(base: BaseSpec, changed: Mapping[str, tuple[BaseModule, ...]], places: Iterable[Linears]) -> BaseSpec:
    """The base with other modules in the place of some; where one form has a bias, the other has."""
    modules = tuple(new for module in base.modules for new in changed.get(module.path, (module,)))
    if base.details is None:
        return replace(base, modules=modules)
    biases = set(base.details.bias_paths)
    for linears in places:
        paths = {linears.fused.path, *(part.path for part in linears.parts)}
        if not paths.isdisjoint(biases):
            biases |= paths
    return replace(base, modules=modules, details=replace(base.details, bias_paths=frozenset(biases)))


def _check_scalings(fused: BaseModule, found: list[PlannedModule]) -> list[Violation]:
    shared = _shared_scaling(found)
    if all(_factor(part.scaling, shared) is not None for part in found):
        return []
    scalings = ", ".join(f"{part.path.rpartition('.')[2]} {part.scaling:g}" for part in found)
    problem = (
        f"the base has them as one linear, {fused.path}, which has one scaling, and only a power of two can be "
        "put into B exactly"
    )
    expected = "scalings that are equal, or differ by a power of two"
    return [Violation.of("UNSUPPORTED_LAYOUT", fused.path, f"scalings {scalings}", expected, problem)]


def _check_rank(fused: BaseModule, found: list[PlannedModule], max_rank: int) -> list[Violation]:
    rank = sum(part.rank for part in found)
    if rank <= max_rank:
        return []
    ranks = ", ".join(f"{part.path.rpartition('.')[2]} {part.rank}" for part in found)
    problem = f"its rank is too large: as one linear it has the sum of its parts' ranks ({ranks})"
    return [Violation.of("RANK_TOO_LARGE", fused.path, f"rank {rank}", f"at most {max_rank}", problem)]


def _shared_scaling(found: list[PlannedModule]) -> float:
    """The smallest, so that no part's B loses bits by being divided; 0 where all are."""
    return min((part.scaling for part in found if part.scaling), key=abs, default=0.0)


def _factor(scaling: float, shared: float) -> float | None:
    """The power of two that a scaling is of the shared one, 0 for none; None where it is no such multiple."""
    if scaling == shared:
        return 1.0
    if not scaling:
        return 0.0
    factor = scaling / shared
    is_exact = math.frexp(abs(factor))[0] == 0.5 and factor * shared == scaling
    return factor if is_exact and abs(factor) <= _MAX_FACTOR else None


def _joined(linears: Linears, found: list[PlannedModule]) -> ServedModule:
    scaling, rank = _shared_scaling(found), sum(part.rank for part in found)
    by_path = {part.path: part for part in found}
    b_blocks: list[Block] = []
    bias_blocks: list[Block] = []
    left = 0
    for part in linears.parts:
        rows, planned = range(part.out_features), by_path.get(part.path)
        factor = _factor(planned.scaling, scaling) if planned is not None else 1.0
        assert factor is not None, "scalings were checked"
        own = planned.rank if planned is not None else 0
        right = rank - left - own
        b = planned.b if planned is not None else None
        b_blocks.append(Block(b, rows, left, right, factor))
        bias = planned.bias if planned is not None else None
        bias_blocks.append(Block(bias, rows, factor=factor))
        left += own
    num_rows = linears.fused.out_features
    return ServedModule(
        linears.fused.path,
        rank,
        scaling,
        stacked([part.a for part in found]),
        WrittenTensor((num_rows, rank), tuple(b_blocks)),
        WrittenTensor((num_rows,), tuple(bias_blocks)) if any(part.bias is not None for part in found) else None,
    )


def _part(planned: PlannedModule, part: BaseModule, rows: range) -> ServedModule:
    bias = _rows_or_none(planned.bias, rows)
    return ServedModule(part.path, planned.rank, planned.scaling, stacked([planned.a]), rows_of(planned.b, rows), bias)


def _rows_or_none(tensor: StoredTensor | None, rows: range) -> WrittenTensor | None:
    return rows_of(tensor, rows) if tensor is not None else None
