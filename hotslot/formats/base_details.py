"""Details of a base model, beyond its modules, that adapters are compared with; no part of its digest."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hotslot.formats.companions import Companions, companions_from_json
from hotslot.formats.strict_json import StrictJsonError, parse_object

MAX_DETAILS_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class BaseDetails:
    """Facts of a base model's folder beyond its modules."""

    bias_paths: frozenset[str] = frozenset()
    """Modules with a bias of their own, norms among them."""
    companions: Companions = field(default_factory=Companions)
    layers: Mapping[str, int] = field(default_factory=dict)
    """Numbers in its config that decide which layers of the checkpoint are loaded (`formats/loaded_modules.py`)."""
    attention: Mapping[str, int] = field(default_factory=dict)
    """Numbers of heads and their size, by their names in most configs: the rows of fused queries, keys and values."""

    def to_json(self) -> str:
        """As text that `details_from_json` reads; the same for equal ones."""
        document = {
            "bias_paths": sorted(self.bias_paths),
            "companions": json.loads(self.companions.to_json()),
            **({"layers": dict(self.layers)} if self.layers else {}),
            **({"attention": dict(self.attention)} if self.attention else {}),
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"))

    def within_bounds(self) -> "BaseDetails | None":
        """The same, without what makes it too large to be sent; None where that is not enough."""
        plain = replace(self, companions=replace(self.companions, added_tokens={}))
        return next((d for d in (self, plain) if len(d.to_json()) <= MAX_DETAILS_BYTES), None)

    def says_more_than(self, other: "BaseDetails | None") -> bool:
        """Tell whether more files were there when these details were read, or a newer version read them."""
        if other is None or len(self.companions.files) > len(other.companions.files):
            return True
        numbers, theirs = len(self.layers) + len(self.attention), len(other.layers) + len(other.attention)
        return len(self.companions.files) == len(other.companions.files) and numbers > theirs


def details_from_json(text: str) -> BaseDetails | None:
    """None for an empty text; raises StrictJsonError for what `BaseDetails.to_json` does not write."""
    if not text:
        return None
    if len(text) > MAX_DETAILS_BYTES:
        raise StrictJsonError(f"{len(text)} characters, at most {MAX_DETAILS_BYTES} are taken")
    document = parse_object(text.encode("utf-8", "surrogatepass"))
    paths = document.get("bias_paths")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise StrictJsonError("bias_paths is no list of paths")
    return BaseDetails(
        bias_paths=frozenset(paths),
        companions=companions_from_json(json.dumps(document.get("companions", {})).encode()),
        layers=_numbers("layers", document.get("layers", {})),
        attention=_numbers("attention", document.get("attention", {})),
    )


def _numbers(name: str, found: object) -> dict[str, int]:
    if not isinstance(found, dict) or not all(type(number) is int and number >= 0 for number in found.values()):
        raise StrictJsonError(f"{name} is no object of numbers")
    return found
