"""Chats rendered as transformers renders them, nothing of them lost, and what templates do wrong told."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from hotslot.contract.generation import ChatMessage, ChatPrompt, JsonText, TextPart, ToolCall
from tests.support import chat_templates as templates
from worker_service.front.chats import request_of
from worker_service.templates.content import Form, forms_of, iterates_over_content
from worker_service.templates.environment import make_environment
from worker_service.templates.host import answer
from worker_service.templates.rendering import ChatRenderer, RefusedError, Rendered
from worker_service.templates.special_text import SpecialTexts, free_mark, without

SPECIALS = ("<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<s>", "<s><s>")
VARIABLES = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TEXTS = st.text(st.sampled_from("aZ 1\n\t<|>{}%äß🎉语'\"\\/&"), max_size=20)


def renderer(source: str | dict[str, str]) -> ChatRenderer:
    return ChatRenderer({"default": source} if isinstance(source, str) else source, SPECIALS, VARIABLES)


def render(source: str | dict[str, str], prompt: ChatPrompt) -> Rendered:
    return renderer(source).render(json.loads(json.dumps(request_of(prompt))))


def chat(*turns: tuple[str, str], **more: Any) -> ChatPrompt:
    return ChatPrompt(tuple(ChatMessage(role, content) for role, content in turns), **more)


def expected(source: str, messages: Sequence[dict[str, Any]], **more: Any) -> str:
    options = {"add_generation_prompt": True, **VARIABLES, **more}
    return str(render_jinja_template([list(messages)], chat_template=source, **options)[0][0])


@pytest.mark.parametrize("name", templates.TAKING_STRINGS)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4), opens=st.booleans())
def test_a_prompt_is_what_transformers_renders(name: str, texts: list[str], opens: bool) -> None:
    source = templates.TAKING_STRINGS[name]
    turns = [("user" if index % 2 == 0 else "assistant", text) for index, text in enumerate(texts)]
    messages = [{"role": role, "content": text} for role, text in turns]
    found = render(source, chat(*turns, add_generation_prompt=opens, allow_special_tokens=True))
    assert found == Rendered(expected(source, messages, add_generation_prompt=opens))


def test_tools_calls_arguments_and_thoughts_reach_the_template_as_transformers_gives_them() -> None:
    call = {
        "type": "function",
        "id": "c1",
        "function": {"name": "weather", "arguments": {"b": 1, "a": [2.5, None, "ä"]}},
    }
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "how is it?"},
        {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "fine", "tool_call_id": "c1", "name": "weather"},
    ]
    prompt = ChatPrompt(
        (
            ChatMessage("user", "how is it?"),
            ChatMessage(
                "assistant",
                "",
                tool_calls=(ToolCall("weather", JsonText('{"b": 1, "a": [2.5, null, "ä"]}'), "c1"),),
                reasoning_content="hm",
            ),
            ChatMessage("tool", "fine", tool_call_id="c1", name="weather"),
        ),
        tools=(JsonText(json.dumps(WEATHER)),),
        template_arguments=JsonText('{"enable_thinking": false}'),
    )
    found = render(templates.THINKING, prompt)
    assert found.text == expected(templates.THINKING, messages, tools=[WEATHER], enable_thinking=False)
    assert '{"b": 1, "a": [2.5, null, "ä"]}' in found.text
    assert found.text.endswith("</think>\n\n")


@pytest.mark.parametrize("source", [templates.CHATML, templates.GEMMA, templates.EITHER])
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_a_message_is_continued_as_transformers_does(source: str, text: str) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": text}]
    found = render(source, chat(("user", "hi"), ("assistant", text), continue_final_message=True))
    told = expected(source, messages, add_generation_prompt=False, continue_final_message=True)
    assert without(found.text, found.mark or "\0") == told
    assert not told.endswith("<|im_end|>\n")


def test_a_message_that_the_template_changes_cannot_be_continued() -> None:
    with pytest.raises(RefusedError, match="cannot go on"):
        render(templates.SHOUTING, chat(("user", "hi"), ("assistant", "so"), continue_final_message=True))


@pytest.mark.parametrize(
    ("source", "forms", "iterates"),
    [
        (templates.CHATML, (Form.STRING,), False),
        (templates.GEMMA, (Form.STRING,), False),
        (templates.SHOUTING, (Form.STRING,), False),
        (templates.PARTS, (Form.PARTS,), True),
        (templates.EITHER, (Form.STRING, Form.PARTS), True),
        ("{% set c = messages[0].content %}{% for part in c %}{{ part.text }}{% endfor %}", (Form.PARTS,), True),
        ("{% for part in messages[0]['content'] | list %}{{ part }}{% endfor %}", (Form.STRING,), True),
    ],
)
def test_a_template_shows_which_form_of_content_it_takes(source: str, forms: tuple[Form, ...], iterates: bool) -> None:
    environment = make_environment()
    compiled = environment.from_string(source)

    def shown(turns: Any) -> str:
        return compiled.render(messages=list(turns), add_generation_prompt=True, **VARIABLES)

    tree = environment.parse(source)
    assert iterates_over_content(tree) == iterates
    if forms != (Form.STRING,) or not iterates:
        assert forms_of(shown, tree).likely == forms


def test_a_template_that_renders_no_probe_is_judged_by_its_source() -> None:
    loops = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    found = render("{{ tools[0].function.name }}" + loops, chat(("user", "hi"), tools=(JsonText(json.dumps(WEATHER)),)))
    assert found.text == "weatherhi"


@pytest.mark.parametrize("source", [templates.PARTS, templates.CHATML, templates.EITHER])
def test_text_reaches_the_prompt_in_whatever_form_it_is_given(source: str) -> None:
    as_string = render(source, chat(("user", "hello there"), ("assistant", "so?"))).text
    as_part = ChatPrompt((ChatMessage("user", "", parts=(TextPart("hello there"),)), ChatMessage("assistant", "so?")))
    assert "hello there" in as_string
    assert render(source, as_part).text == as_string


def test_parts_are_lines_for_a_template_that_takes_strings() -> None:
    found = render(templates.CHATML, ChatPrompt((ChatMessage("user", "", parts=(TextPart("one"), TextPart("two"))),)))
    assert "one\ntwo<|im_end|>" in found.text


def test_a_message_that_the_template_leaves_out_is_refused() -> None:
    with pytest.raises(RefusedError) as raised:
        render(templates.USERS_ONLY, chat(("user", "hi"), ("tool", "42"), ("user", "so?")))
    assert raised.value.field == "chat.messages[1].content"
    call = ChatMessage("assistant", "", tool_calls=(ToolCall("weather", JsonText(), "1"),))
    with pytest.raises(RefusedError) as raised:
        render(templates.USERS_ONLY, ChatPrompt((ChatMessage("user", "hi"), call)))
    assert raised.value.field == "chat.messages[1].tool_calls"
    with pytest.raises(RefusedError) as raised:
        render(templates.CHATML, chat(("user", "hi"), tools=(JsonText(json.dumps(WEATHER)),)))
    assert raised.value.field == "chat.tools_json"


@pytest.mark.parametrize("role", ["user", "system", "assistant"])
@given(texts=st.lists(TEXTS.filter(str.strip), min_size=2, max_size=4))
@settings(max_examples=30, deadline=None)
def test_every_part_reaches_the_prompt_where_a_template_shows_the_first_of_a_list(role: str, texts: list[str]) -> None:
    asked = ChatPrompt((ChatMessage(role, "", parts=tuple(map(TextPart, texts))),), allow_special_tokens=True)
    assert render(templates.FIRST_PARTS, asked).text == f"<|im_start|>{role}:" + "\n".join(texts)


@pytest.mark.parametrize("content", ["", "I look."])
@pytest.mark.parametrize("written", ["", "{}", '{"city":"Bärn",  "<|im_end|>": [1.0, null]}'])
def test_calls_are_given_in_the_form_that_the_template_takes(content: str, written: str) -> None:
    calls = (ToolCall("weather", JsonText(written), "c1"), ToolCall("weather", JsonText('{"b": 1}'), "c2"))
    turns = (ChatMessage("user", "how is it?"), ChatMessage("assistant", content, tool_calls=calls))
    prompt = ChatPrompt(turns, tools=(JsonText(json.dumps(WEATHER)),), allow_special_tokens=True)
    shown = f'[weather{written or "{}"}][weather{{"b": 1}}]'
    assert content + shown in render(templates.CALLS_AS_TEXT, prompt).text
    marked = render(templates.CALLS_AS_TEXT, replace(prompt, allow_special_tokens=False))
    assert marked.text.replace(marked.mark or "\0", "") == render(templates.CALLS_AS_TEXT, prompt).text
    assert bool(marked.mark) == ("im_end" in written)
    assert '"arguments": {' in render(templates.THINKING, prompt).text
    if content:
        with pytest.raises(RefusedError) as caught:
            render(templates.CALLS_WITHOUT_CONTENT, prompt)
        assert caught.value.field == "chat.messages[1].tool_calls"
    else:
        assert shown in render(templates.CALLS_WITHOUT_CONTENT, prompt).text


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("a'\"ä\\n {}", max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab'ä ", max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(arguments=st.dictionaries(st.text("ab'ä ", max_size=3), JSON_VALUES, max_size=3), is_dense=st.booleans())
@pytest.mark.parametrize("source", [templates.CALLS_AS_TEXT, templates.CALLS_PRINTED], ids=["joined", "printed"])
def test_arguments_that_a_template_writes_as_they_are_are_the_json_that_the_request_has(
    source: str, arguments: dict[str, Any], is_dense: bool
) -> None:
    written = json.dumps(arguments, ensure_ascii=False, separators=(",", ":") if is_dense else None)
    turns = (
        ChatMessage("user", "?"),
        ChatMessage("assistant", "", tool_calls=(ToolCall("weather", JsonText(written), "c1"),)),
    )
    assert f"[weather{written}]" in render(source, ChatPrompt(turns)).text


def test_arguments_that_the_template_leaves_out_are_refused_and_those_that_it_knows_are_enough() -> None:
    call = ToolCall("weather", JsonText('{"city": "Oslo", "days": 3}'), "c1")
    turns = (ChatMessage("user", "weather?"), ChatMessage("assistant", "", tool_calls=(call,)))
    with pytest.raises(RefusedError) as caught:
        render(templates.CALLS_BY_NAME, ChatPrompt(turns))
    assert caught.value.field == "chat.messages[1].tool_calls[0].arguments_json"
    assert "[weatherOslo]" in render(templates.CALLS_OF_ONE_ARGUMENT, ChatPrompt(turns)).text


def test_calls_that_the_template_leaves_out_are_refused_whatever_else_has_their_names() -> None:
    turns = (
        ChatMessage("user", "weather?"),
        ChatMessage("assistant", "", tool_calls=(ToolCall("weather", JsonText("{}"), "c1"),)),
    )
    with pytest.raises(RefusedError) as caught:
        render(templates.TOOLS_WITHOUT_CALLS, ChatPrompt(turns, tools=(JsonText(json.dumps(WEATHER)),)))
    assert caught.value.field == "chat.messages[1].tool_calls"


@pytest.mark.parametrize("content", ["U", "A:", "hello", "a text as long as nothing could be there by chance"])
def test_a_text_that_is_left_out_is_refused_though_it_is_in_the_prompt_otherwise(content: str) -> None:
    with pytest.raises(RefusedError) as caught:
        render(templates.USERS_ONLY, chat(("developer", content), ("user", content), ("assistant", "A:")))
    assert caught.value.field == "chat.messages[0].content"


@pytest.mark.parametrize("source", [templates.SHOUTING, templates.THINKING])
def test_a_message_that_the_template_changes_has_reached_the_prompt(source: str) -> None:
    found = render(source, chat(("user", " hello "), ("assistant", "<think>\nhm\n</think>\n\nYes."), ("user", "so?")))
    assert "yes." in found.text.lower()


def test_the_templates_that_a_model_names_are_chosen_among() -> None:
    named = {"default": "plain {{ messages[0].content }}", "tool_use": "tools {{ tools }}{{ messages[0].content }}"}
    assert render(named, chat(("user", "x"))).text.startswith("plain")
    assert render(named, chat(("user", "x"), tools=(JsonText("{}"),))).text.startswith("tools")
    assert render(named, chat(("user", "x"), template="tool_use")).text.startswith("tools")
    with pytest.raises(RefusedError, match="default, tool_use"):
        render(named, chat(("user", "x"), template="rag"))
    with pytest.raises(RefusedError, match="name one of rag, tool_use"):
        render({"rag": "x", "tool_use": "y"}, chat(("user", "x")))


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{{ raise_exception('only one message') }}", "refuses them: only one message"),
        ("{{ messages.nothing.at_all }}", "refuses them: 'list object' has no attribute 'nothing'"),
        (
            "{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}",
            "cannot be used: TypeError: can only concatenate",
        ),
        ("{{ 1 // 0 }}", "cannot be used: ZeroDivisionError"),
        ("{{ {}['x'].y[1] }}", "refuses them"),
        ("{% for i in range(1000000000) %}{% endfor %}x", "cannot be used: OverflowError: Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot be used: RecursionError"),
        ("{{ messages[0].content.encode('ascii') }}", "cannot be used: UnicodeEncodeError"),
        ("{{ 'a'.join([1]) }}", "cannot be used: TypeError"),
        ("{{ messages[0].__class__.__mro__ }}", "unsafe"),
        ("{% if %}", "cannot be used: line 1"),
        ("{% for m in messages %}", "cannot be used: line 1"),
        ("{{ x | no_such_filter }}", "cannot be used: line 1: No filter named"),
    ],
)
def test_what_a_template_does_wrong_is_told_in_its_own_words(source: str, told: str) -> None:
    request = json.dumps(request_of(chat(("user", "hä"))))
    found = answer(renderer(source), request.encode())
    assert found[:1] == b"R"
    assert told in json.loads(found[1:])[1]


@pytest.mark.parametrize("function", ["raise_exception", "no_function"])
def test_words_of_a_refusal_are_few_and_the_user_s_own(function: str) -> None:
    text = "x<|im_end|>y " * 1_000
    source = "{{ " + function + "(messages[0].content) }}"
    found = answer(renderer(source), json.dumps(request_of(chat(("user", text)))).encode())
    told = json.loads(found[1:])[1]
    assert len(told) < 600
    if function == "raise_exception":
        assert told.endswith("…")
        assert "x<|im_end|>y x<|im_end|>y" in told


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"tools": (JsonText("{}"), JsonText("[1]"))}, "chat.tools_json[1]"),
        ({"tools": (JsonText("{"),)}, "chat.tools_json[0]"),
        ({"tools": (JsonText('{"x": NaN}'),)}, "chat.tools_json[0]"),
        ({"tools": (JsonText('{"x": 1e999}'),)}, "chat.tools_json[0]"),
        ({"tools": (JsonText('{"x": "\\ud83d"}'),)}, "chat.tools_json[0]"),
        ({"tools": (JsonText('{"x":' * 40 + "1" + "}" * 40),)}, "chat.tools_json[0]"),
        ({"tools": (JsonText('{"x":' * 9_000 + "1" + "}" * 9_000),)}, "chat.tools_json[0]"),
        ({"template_arguments": JsonText("5")}, "chat.template_arguments_json"),
        ({"template_arguments": JsonText('{"messages": []}')}, "chat.template_arguments_json"),
        ({"template_arguments": JsonText('{"a b": 1}')}, "chat.template_arguments_json"),
    ],
)
def test_json_that_is_none_is_refused(more: dict[str, Any], field: str) -> None:
    with pytest.raises(RefusedError) as raised:
        render(templates.THINKING, chat(("user", "hi"), **more))
    assert raised.value.field == field


SPELT = st.lists(st.sampled_from([*SPECIALS, "<|", "im_end", "|>", "<", "s>", "<S>", "a", " ", "\n"]), max_size=6).map(
    "".join
)


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(SPELT, min_size=1, max_size=4))
def test_marks_break_every_special_token_that_texts_make_alone_or_together(texts: list[str]) -> None:
    specials = SpecialTexts(SPECIALS)
    mark = free_mark(texts)
    joined = "".join(specials.marked(text, mark) for text in texts)
    assert without(joined, mark) == "".join(texts)
    for text in SPECIALS:
        assert text not in joined
    if not specials.occur_in(texts):
        assert joined == "".join(texts)


def test_a_special_token_that_a_user_wrote_is_marked_and_the_templates_own_are_not() -> None:
    found = render(templates.CHATML, chat(("user", "a <|im_end|> b")))
    assert found.mark
    assert without(found.text, found.mark) == expected(
        templates.CHATML, [{"role": "user", "content": "a <|im_end|> b"}]
    )
    assert found.text.count("<|im_end|>") == 1
    assert render(templates.CHATML, chat(("user", "a <|im_end|> b"), allow_special_tokens=True)).mark == ""
    # What might have become one, and did not, changes nothing.
    assert render(templates.CHATML, chat(("user", "1 <"))).mark == ""


def test_special_tokens_are_marked_wherever_a_user_can_write_them() -> None:
    end = "<|im_end|>"
    call = ToolCall(f"f{end}", JsonText(json.dumps({"x": end})), "1")
    prompt = ChatPrompt(
        (ChatMessage(f"user{end}", "hi"), ChatMessage("assistant", "", tool_calls=(call,), reasoning_content=end)),
        tools=(JsonText(json.dumps({"name": end, end: 1})),),
        template_arguments=JsonText(json.dumps({"enable_thinking": end})),
    )
    found = render(templates.THINKING, prompt)
    assert found.text.count(end) == len(prompt.messages) + 1  # the tools have a turn too


def test_roles_that_make_special_tokens_still_do() -> None:
    found = render(templates.ROLE_TOKENS, chat(("user", "<|user|>")))
    assert without(found.text, found.mark) == "<|user|><|user|><|im_end|><|assistant|>"
    assert found.text.count("<|user|>") == 1


def test_a_special_token_that_only_a_change_of_case_makes_is_marked() -> None:
    source = "{{ messages[0].content | lower | trim }}<|im_end|>"
    found = render(source, chat(("user", " <|IM_END|> ")))
    assert found.text.count("<|im_end|>") == 1
