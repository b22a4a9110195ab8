"""Checks that a checkpoint's names are of one style: PEFT reads one, and drops what is written in another."""

from collections.abc import Iterator, Mapping

from hotslot.errors import Violation
from hotslot.formats.base_spec import Absence, BaseModule, BaseSpec
from store_service.admission.keys import HEAD_NAMES, ParsedKey, Role, naming_of
from store_service.admission.parts import CheckpointParts, FoundPart

_OF_LINEARS = (Role.A, Role.B)


def check_naming(parts: CheckpointParts, base: BaseSpec) -> Iterator[Violation]:
    """At most one violation for a pair whose halves are named unlike, and one for a checkpoint of several styles."""
    modules = base.by_path()
    styles: dict[tuple[str, str], tuple[str, FoundPart]] = {}
    """The first tensor of each aspect of a style that was seen, with how it has it."""
    mixed: set[str] = set()
    for path, roles in parts.by_path.items():
        if modules[path].absence is Absence.OTHER_PART:
            continue  # Towers have names of their own kind, and are refused in any case.
        founds = list(roles.values())
        for other in founds[1:]:
            if other.parsed.stem != founds[0].parsed.stem:
                yield _mixed(f"{path} has one name for each half of its pair", founds[0], other)
                break
        for found in founds:
            for aspect, kind, value in _aspects(found.parsed, modules):
                first, example = styles.setdefault((aspect, kind), (value, found))
                if first != value and aspect not in mixed:
                    mixed.add(aspect)
                    yield _mixed(f"the checkpoint has names of two styles, which differ in {aspect}", example, found)


def _aspects(parsed: ParsedKey, modules: Mapping[str, BaseModule]) -> Iterator[tuple[str, str, str]]:
    """Aspects of a name's style: aspect, the kind of tensors that are alike in it, and the style of this name."""
    yield "their beginning", "", parsed.leading
    if parsed.path.rpartition(".")[2] not in HEAD_NAMES:
        yield "what stands before the layers", "", naming_of(parsed.path, modules)
    if parsed.role is not Role.BIAS:
        yield "their end", "linear" if parsed.role in _OF_LINEARS else "embedding", parsed.form


def _mixed(problem: str, first: FoundPart, second: FoundPart) -> Violation:
    names = first.tensor.entry.name, second.tensor.entry.name
    return Violation.of(
        "MIXED_NAMES",
        names[1],
        f"{names[1]} beside {names[0]}",
        "names of one style throughout",
        f"{problem}, so PEFT would apply only one part of it; rename them alike, or save the adapter again",
    )
