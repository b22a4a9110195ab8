"""Formats in which base models write calls of tools, as a setting names them: one for all, or one for each. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from gateway_service.tool_calls import ToolFormat

NONE = "none"
"""Parser that leaves calls in the text."""
PARSERS = (NONE, *ToolFormat)


@dataclass(frozen=True, slots=True)
class ToolFormats:
    """Formats by base model; `none` of one base model overrides the one of all."""

    default: ToolFormat | None = None
    by_base: Mapping[str, ToolFormat | None] = field(default_factory=lambda: MappingProxyType({}))
    """By name or digest."""

    def of(self, *names: str) -> ToolFormat | None:
        """The format of the base model that has these names, the first that is listed; None where calls stay text."""
        return next((self.by_base[name] for name in names if name in self.by_base), self.default)


def parsed_formats(parts: Iterable[str]) -> ToolFormats:
    """Formats from parts like `hermes` and `name=llama3_json`; raises ValueError that names the part."""
    found: dict[str, ToolFormat | None] = {}
    for part in parts:
        base, separator, parser = part.strip().rpartition("=")
        if parser not in PARSERS or bool(separator) != bool(base):
            raise ValueError(f"{part!r} is none of {', '.join(PARSERS)}, nor BASE_MODEL=PARSER with one of them")
        if base in found:
            raise ValueError(f"{part!r} gives {base or 'all base models'} a second parser")
        found[base] = None if parser == NONE else ToolFormat(parser)
    return ToolFormats(found.pop("", None), found)


def checked_parsers(parts: tuple[str, ...]) -> tuple[str, ...]:
    """The same, where they can be read; raises ValueError."""
    parsed_formats(parts)
    return parts
