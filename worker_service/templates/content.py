"""The form in which a template takes a message's content: a plain string, or a list of parts. Pure.

A template that iterates over parts gets the letters of a string, and mostly shows nothing of them; one that takes
strings shows a list as Python writes it. Neither fails, so a template is asked: it renders a probe in either form.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import nodes

ChatTurns = Sequence[Mapping[str, Any]]

_PROBE = "Qk7zProbe"
_LISTED = ("'type': 'text'", '"type": "text"', '"type":"text"', "[{")
_SHAPES = (("user",), ("system", "user"), ("user", "assistant", "user"), ("system", "user", "assistant", "user"))


class Form(enum.Enum):
    """Form in which content is given."""

    STRING = "string"
    PARTS = "parts"


def in_form(turn: Mapping[str, Any], form: Form) -> dict[str, Any]:
    """The message with its content, if it has any, in this form; texts of several parts become lines."""
    content = turn["content"]
    if content is None:
        return dict(turn)
    if form is Form.PARTS and isinstance(content, str):
        content = [{"type": "text", "text": content}] if content else []
    elif form is Form.STRING and not isinstance(content, str):
        content = "\n".join(part["text"] for part in content)
    return {**turn, "content": content}


def text_of(turn: Mapping[str, Any]) -> list[str]:
    """The texts of a message's content."""
    content = turn["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content or ()]


@dataclass(frozen=True, slots=True)
class Forms:
    """The forms to give content in."""

    likely: tuple[Form, ...]
    """At least one, the likeliest first."""
    are_certain: bool
    """They were seen to work, and no other was."""

    def in_order(self, given: Form) -> tuple[Form, ...]:
        """Forms to try, for content that is given in one form; the request's own comes first where both work."""
        if not self.are_certain or given not in self.likely:
            return self.likely
        return (given, *(form for form in self.likely if form is not given))


def forms_of(render: Callable[[ChatTurns], str], tree: nodes.Template) -> Forms:
    """Find the forms that a template takes.

    If it renders no probe at all (it wants arguments, or tools), its source tells which form to try first.
    """
    accepted = tuple(form for form in Form if _shows_probe(render, form))
    if accepted:
        return Forms(accepted, are_certain=True)
    likely = (Form.PARTS, Form.STRING) if iterates_over_content(tree) else (Form.STRING, Form.PARTS)
    return Forms(likely, are_certain=False)


def _shows_probe(render: Callable[[ChatTurns], str], form: Form) -> bool:
    for roles in _SHAPES:
        turns = [in_form({"role": role, "content": f"{_PROBE}{index}"}, form) for index, role in enumerate(roles)]
        try:
            shown = render(turns)
        except Exception:  # noqa: BLE001 (a template may raise anything; that is an answer too)
            continue
        last = f"{_PROBE}{len(roles) - 1}".lower()
        return last in shown.lower() and not any(written in shown for written in _LISTED)
    return False


def iterates_over_content(tree: nodes.Template) -> bool:
    """Tell from its source whether a template loops over a message's content."""
    names: set[str] = set()
    for _ in range(3):  # Content is passed on through a few names at most.
        for assigned in tree.find_all(nodes.Assign):
            if isinstance(assigned.target, nodes.Name) and _is_content(assigned.node, names):
                names.add(assigned.target.name)
    return any(_is_content(loop.iter, names) for loop in tree.find_all(nodes.For))


def _is_content(node: nodes.Node, names: set[str]) -> bool:
    match node:
        case nodes.Getattr(attr="content"):
            return True
        case nodes.Getitem(arg=nodes.Const(value="content")):
            return True
        case nodes.Name(name=name):
            return name in names
        case nodes.Filter(node=inner) if inner is not None:
            return _is_content(inner, names)
    return False
