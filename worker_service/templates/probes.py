"""Probes: texts added to what messages say, which show that a prompt has all of it, however it is changed. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker_service.templates.calls import calls_of, probing_calls, written_by_python
from worker_service.templates.content import text_of

_REACHED = "Vx3Reached"
_MIN_CERTAIN_CHARS = 24
"""A shorter text may be in a prompt by chance."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One text to look for, in whatever case its letters are then."""

    field: str
    text: str
    rough: str = ""
    """Text that a template shows where it writes arguments as Python does."""
    replaced: str = ""
    """Text that stands in its place otherwise: the name of a call."""


def is_within(turn: Mapping[str, Any], text: str) -> bool:
    """Tell whether all that a message says is somewhere in a text."""
    return all(part.strip() in text for part in text_of(turn))


def probes_of(turns: Sequence[Mapping[str, Any]], text: str) -> list[Probe]:
    """The probes to look for: of calls, and of what is not seen in the prompt or may be there by chance."""
    said = Counter(part.strip() for turn in turns for part in text_of(turn))
    probes = []
    for index, turn in enumerate(turns):
        seen = is_within(turn, text)
        for place, part in enumerate(text_of(turn)):
            own = part.strip()
            if own and (not seen or len(own) < _MIN_CERTAIN_CHARS or said[own] > 1):
                probes.append(Probe(f"chat.messages[{index}].content", f"{_REACHED}{index}p{place}e"))
        for place, call in enumerate(calls_of(turn)):
            name = call["function"]["name"]
            field, arguments = f"chat.messages[{index}].tool_calls", f"{_REACHED}{index}c{place}a"
            probes.append(Probe(field, f"{_REACHED}{index}c{place}e", replaced=name))
            probes.append(Probe(f"{field}[{place}].arguments_json", arguments, rough=written_by_python(arguments)))
    return probes


def probing(turn: dict[str, Any], index: int) -> dict[str, Any]:
    """The message with a probe at the end of each of its texts, in the place of each call's name, and in arguments."""
    content = turn["content"]
    if isinstance(content, str) and content.strip():
        content = f"{content}{_REACHED}{index}p0e"
    elif isinstance(content, list):
        content = [{**part, "text": f"{part['text']}{_REACHED}{index}p{place}e"} for place, part in enumerate(content)]
    return probing_calls({**turn, "content": content}, f"{_REACHED}{index}c")
