"""A conversation to the text that the model's chat template makes of it. Pure; endless where the template is."""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jinja2
from jinja2 import meta, nodes

from worker_service.templates.calls import other_forms
from worker_service.templates.content import Form, Forms, forms_of, in_form, text_of
from worker_service.templates.environment import make_environment
from worker_service.templates.probes import is_within, probes_of, probing
from worker_service.templates.special_text import SpecialTexts, changed, free_mark, strings_of, without

MAX_RENDERED_CHARS = 32 * 2**20
MAX_JSON_DEPTH = 32
OWN_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt"})
"""Variables that the request has fields for."""
_CONTINUED = "Vx3Continued9"
"""Stands at the end of a message that goes on, until the prompt is cut there."""


class RefusedError(Exception):
    """The conversation cannot be rendered; names the field at fault."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt; `mark` stands in what would be a special token without it, and is empty where nothing is."""

    text: str
    mark: str = ""


@dataclass(frozen=True, slots=True)
class _Template:
    """One compiled template and what is known about it."""

    compiled: jinja2.Template
    variables: frozenset[str]
    forms: Forms


@dataclass(frozen=True, slots=True)
class _Conversation:
    """Conversation as the template gets it."""

    turns: list[dict[str, Any]]
    tools: list[Any] | None
    arguments: dict[str, Any]
    opens_turn: bool
    continues: bool


class ChatRenderer:
    """One model's templates."""

    def __init__(self, sources: Mapping[str, str], specials: Sequence[str], variables: Mapping[str, Any]) -> None:
        """`sources` by name; `specials` are special tokens' texts, `variables` what every template gets."""
        self._sources = sources
        self._specials = SpecialTexts(specials)
        self._variables = dict(variables)
        self._environment = make_environment()
        self._templates: dict[str, _Template] = {}

    def render(self, request: Mapping[str, Any]) -> Rendered:
        """Render one request, as `front/chat.py` writes it. Raises RefusedError and whatever the template raises."""
        conversation = _conversation(request)
        template = self._template(self._name(request["template"], conversation))
        if conversation.tools and "tools" not in template.variables:
            raise RefusedError("chat.tools_json", "this model's chat template takes no tools")
        texts = [[call["arguments_json"] for call in turn["tool_calls"]] for turn in request["messages"]]
        others = (replace(conversation, turns=turns) for turns in other_forms(conversation.turns, texts))
        given = [conversation, *others]
        strings = list(strings_of([conversation.turns, conversation.tools, conversation.arguments, texts]))
        if request["allow_special_tokens"] or not self._specials.occur_in(strings):
            return Rendered(self._complete(template, given))
        try:
            mark = free_mark([*strings, *self._sources.values()])
        except ValueError as exc:
            raise RefusedError("chat.messages", str(exc)) from exc
        marked = [_marked(one, lambda text: self._specials.marked(text, mark)) for one in given]
        text = self._complete(template, marked, mark)
        return Rendered(text, mark) if self._specials.kept(text, mark) else Rendered(without(text, mark))

    def _name(self, asked: str, conversation: _Conversation) -> str:
        names = ", ".join(sorted(self._sources))
        if asked:
            if asked not in self._sources:
                raise RefusedError("chat.template", f"found {asked[:80]!r}, this model's templates are {names}")
            return asked
        if conversation.tools and "tool_use" in self._sources:
            return "tool_use"
        if "default" not in self._sources:
            problem = f"this model has several chat templates and none is the default: name one of {names}"
            raise RefusedError("chat.template", problem)
        return "default"

    def _template(self, name: str) -> _Template:
        known = self._templates.get(name)
        if known is None:
            source = self._sources[name]
            tree = self._environment.parse(source)
            compiled = self._environment.from_string(source)
            forms = forms_of(lambda turns: self._shown(compiled, _probe(turns)), tree)
            known = self._templates[name] = _Template(compiled, _variables(tree), forms)
        return known

    def _complete(self, template: _Template, given: Sequence[_Conversation], mark: str = "") -> str:
        """The prompt, in a form in which every message is in it; raises RefusedError when there is none.

        `given` is one conversation, first as it came and then with its calls in other forms.
        """
        is_text = all(isinstance(turn["content"], str) for turn in given[0].turns)
        forms = template.forms.in_order(Form.STRING if is_text else Form.PARTS)
        problem: Exception | None = None
        rough = ""
        for conversation, form in itertools.product(given, forms):
            try:
                text = self._text(template, conversation, form)
                lost, is_rough = self._lost(template, conversation, form, text, mark)
            except Exception as exc:  # noqa: BLE001 (a template raises what it likes; in the other form perhaps nothing)
                problem = problem or exc
                continue
            if not lost and not is_rough:
                return text
            if not lost:
                rough = rough or text
                continue
            advice = "this model's chat template leaves it out; give it in another role, or not at all"
            problem = problem or RefusedError(lost, advice)
        if rough:
            return rough
        assert problem is not None
        raise problem

    def _text(self, template: _Template, conversation: _Conversation, form: Form) -> str:
        turns = [in_form(turn, form) for turn in conversation.turns]
        if not conversation.continues:
            return self._shown(template.compiled, _with_turns(conversation, turns))
        # As transformers does it, so that prompts are the same.
        last = turns[-1]
        final = text_of(last)[-1] if text_of(last) else ""
        tagged = f"{final}{_CONTINUED} "
        parts = [*(last["content"] or ())[:-1], {"type": "text", "text": tagged}]
        last["content"] = tagged if form is Form.STRING else parts
        shown = self._shown(template.compiled, _with_turns(conversation, turns))
        if final.strip() not in shown or _CONTINUED not in shown:
            problem = "this model's chat template changes the last message, so that it cannot go on"
            raise RefusedError("chat.continue_final_message", problem)
        place = shown.rindex(_CONTINUED)
        is_kept = shown[place:].startswith(f"{_CONTINUED} ")
        return shown[:place] if is_kept else shown[:place].rstrip()

    def _lost(
        self, template: _Template, conversation: _Conversation, form: Form, text: str, mark: str
    ) -> tuple[str, bool]:
        """The first field whose text is not in the prompt, empty when all are; true where arguments are no JSON there.

        Those that a template writes as Python does it was written to get as JSON text.
        """
        turns = [in_form(turn, form) for turn in conversation.turns]
        probes = probes_of(turns, text)
        if not probes:
            return "", False
        try:
            probed = [probing(turn, index) for index, turn in enumerate(turns)]
            shown = self._shown(template.compiled, _with_turns(conversation, probed)).lower()
        except Exception:
            if not all(is_within(turn, text) for turn in turns):
                raise
            # It looks at texts or names; as they are, they were seen.
            bare = without(text, mark) if mark else text
            lost = (probe.field for probe in probes if without(probe.replaced, mark or "\0") not in bare)
            return next(lost, ""), False
        is_rough = any(probe.rough and probe.rough.lower() in shown for probe in probes)
        return next((probe.field for probe in probes if probe.text.lower() not in shown), ""), is_rough

    def _shown(self, compiled: jinja2.Template, conversation: _Conversation) -> str:
        """Text that the template makes of a conversation, piece by piece, so that an endless one ends."""
        pieces, num_chars = [], 0
        variables = {**self._variables, **conversation.arguments}
        for piece in compiled.generate(
            variables,
            messages=_for_template(conversation.turns),
            tools=conversation.tools,
            documents=conversation.arguments.get("documents"),
            add_generation_prompt=conversation.opens_turn,
        ):
            pieces.append(piece)
            num_chars += len(piece)
            if num_chars > MAX_RENDERED_CHARS:
                raise RefusedError("chat", f"its prompt is longer than {MAX_RENDERED_CHARS:,} characters")
        return "".join(pieces)


def _conversation(request: Mapping[str, Any]) -> _Conversation:
    arguments = _object(request["template_arguments_json"], "chat.template_arguments_json")
    for name in arguments:
        if name in OWN_VARIABLES or not name.isidentifier():
            problem = f"found the variable {name[:80]!r}, expected a name that the request has no field for"
            raise RefusedError("chat.template_arguments_json", problem)
    tools = [_object(text, f"chat.tools_json[{index}]") for index, text in enumerate(request["tools_json"])]
    turns = [_turn(turn, f"chat.messages[{index}]") for index, turn in enumerate(request["messages"])]
    return _Conversation(turns, tools or None, arguments, request["opens_turn"], request["continues"])


def _turn(turn: Mapping[str, Any], field: str) -> dict[str, Any]:
    """A message as templates know it; what is empty is absent."""
    made: dict[str, Any] = {"role": turn["role"], "content": turn["content"]}
    if turn["parts"]:
        made["content"] = [{"type": "text", "text": text} for text in turn["parts"]]
    made.update({name: turn[name] for name in ("tool_call_id", "name", "reasoning_content") if turn[name]})
    calls = [
        {
            "id": call["id"],
            "type": "function",
            "function": {
                "name": call["name"],
                "arguments": _object(call["arguments_json"], f"{field}.tool_calls[{index}].arguments_json"),
            },
        }
        for index, call in enumerate(turn["tool_calls"])
    ]
    return {**made, "tool_calls": calls} if calls else made


def _object(text: str, field: str) -> dict[str, Any]:
    """A JSON object, of bounded depth and with nothing that JSON does not have."""
    if not text:
        return {}
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise RefusedError(field, f"it is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise RefusedError(field, f"found {type(value).__name__}, expected a JSON object")
    _check_depth(value, field, MAX_JSON_DEPTH)
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"JSON has no {name}")


def _check_depth(value: Any, field: str, left: int) -> None:
    if isinstance(value, str):
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise RefusedError(field, "it has half of a surrogate pair, which is no text")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise RefusedError(field, "it has a number that is not finite")
    elif isinstance(value, dict | list):
        if left == 0:
            raise RefusedError(field, f"it is nested more than {MAX_JSON_DEPTH} deep")
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_depth(item, field, left - 1)


def _for_template(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages with what the assistant thought under the name that some templates read."""
    thoughts = ({"thinking": turn["reasoning_content"]} if "reasoning_content" in turn else {} for turn in turns)
    return [{**turn, **thought} for turn, thought in zip(turns, thoughts, strict=True)]


def _marked(conversation: _Conversation, mark: Callable[[str], str]) -> _Conversation:
    return _Conversation(
        changed(conversation.turns, mark),
        changed(conversation.tools, mark),
        changed(conversation.arguments, mark),
        conversation.opens_turn,
        conversation.continues,
    )


def _with_turns(conversation: _Conversation, turns: list[dict[str, Any]]) -> _Conversation:
    return _Conversation(turns, conversation.tools, conversation.arguments, conversation.opens_turn, False)


def _probe(turns: Sequence[Mapping[str, Any]]) -> _Conversation:
    return _Conversation([dict(turn) for turn in turns], None, {}, True, False)


def _variables(tree: nodes.Template) -> frozenset[str]:
    return frozenset(meta.find_undeclared_variables(tree))
