"""Token ids of chats and texts, against transformers' own, with real tokenizers of all kinds."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotslot.contract.generation import ChatMessage, ChatPrompt, TextPart
from hotslot.errors import PromptTooLongError
from tests.support import chat_templates as templates
from tests.support import tokenizers_of_all_kinds as kinds
from worker_service.front import chats, tokenising
from worker_service.front.prompts import PromptEncoder
from worker_service.front.stand_ins import StandIns
from worker_service.templates.process import ModelTemplates
from worker_service.templates.rendering import ChatRenderer, Rendered

TEMPLATES = {
    "chatml": templates.CHATML,
    "gemma": templates.GEMMA,
    "role tokens": templates.ROLE_TOKENS,
    "thinking": templates.THINKING,
    "spaced": "{% for m in messages %}{{ m.role }} <|im_start|> {{ m.content }} <|im_end|> {% endfor %}",
}
TOKENIZERS = {name: make() for name, make in kinds.ALL.items()}
WORDS = ("h", "hell", " w", "\n", "\n\n", "<", "|>", "im_end", "<think>", "</think>", " ", "ä", "1", "_")
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map("".join)
SPELT = st.lists(st.sampled_from((*WORDS, "<S", "S>", "s>", *kinds.SPECIALS)), min_size=1, max_size=8).map("".join)
EVERY = pytest.mark.parametrize("kind", TOKENIZERS)


class InThisProcess:
    """Renders at once; the processes have tests of their own."""

    def __init__(self, model: ModelTemplates) -> None:
        self._renderer = ChatRenderer(model.sources, model.specials, model.variables)

    async def render(self, request: dict[str, Any]) -> Rendered:
        return self._renderer.render(request)


@pytest.fixture(autouse=True, scope="module")
def in_this_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chats, "TemplateProcesses", InThisProcess)
        yield


@pytest.fixture(scope="module")
def encoders() -> dict[tuple[str, str], PromptEncoder]:
    made = {}
    for kind, tokenizer in TOKENIZERS.items():
        for name, source in TEMPLATES.items():
            tokenizer.chat_template = source
            made[kind, name] = PromptEncoder(tokenizer, 10**6)
    return made


def turns_of(texts: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": "assistant" if index % 2 else "user", "content": text} for index, text in enumerate(texts)]


def encode(encoder: PromptEncoder, texts: Sequence[str], **more: Any) -> list[int]:
    messages = tuple(ChatMessage(turn["role"], turn["content"]) for turn in turns_of(texts))
    return list(asyncio.run(encoder.encode(ChatPrompt(messages, **more))))


def of_transformers(kind: str, name: str, texts: Sequence[str]) -> list[int]:
    tokenizer = TOKENIZERS[kind]
    options = {"chat_template": TEMPLATES[name], "add_generation_prompt": True, "return_dict": False}
    return list(tokenizer.apply_chat_template(turns_of(texts), tokenize=True, **options))


@EVERY
@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_a_chat_without_special_tokens_has_the_ids_of_transformers(
    kind: str, name: str, texts: list[str], encoders: dict[tuple[str, str], PromptEncoder]
) -> None:
    assert encode(encoders[kind, name], texts) == of_transformers(kind, name, texts)


@EVERY
@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=30, deadline=None)
@given(texts=st.lists(SPELT, min_size=1, max_size=3))
def test_special_tokens_that_a_request_allows_are_those_of_transformers(
    kind: str, name: str, texts: list[str], encoders: dict[tuple[str, str], PromptEncoder]
) -> None:
    found = encode(encoders[kind, name], texts, allow_special_tokens=True)
    assert found == of_transformers(kind, name, texts)


@EVERY
@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(SPELT, min_size=1, max_size=3))
def test_special_tokens_that_a_user_wrote_stay_text(
    kind: str, name: str, texts: list[str], encoders: dict[tuple[str, str], PromptEncoder]
) -> None:
    tokenizer = TOKENIZERS[kind]
    found = encode(encoders[kind, name], texts)
    # The same conversation with nothing in its messages shows which special tokens are the template's.
    bare = of_transformers(kind, name, ["x"] * len(texts))
    special = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids(text) for text in kinds.SPECIALS}
    special.discard(tokenizer.unk_token_id)
    assert [i for i in found if i in special] == [i for i in bare if i in special]


@EVERY
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, specials=st.lists(st.sampled_from(kinds.SPECIALS), min_size=1, max_size=3))
def test_stand_ins_are_tokenised_as_what_they_stand_for(kind: str, text: str, specials: list[str]) -> None:
    tokenizer, whole = TOKENIZERS[kind], text.join([*specials, ""])
    stand_ins = _stand_ins(kind)
    written, num_specials = stand_ins.written(whole, "")
    assert num_specials >= 1
    assert stand_ins.encode(written, add_special_tokens=False) == tokenizer.encode(whole, add_special_tokens=False)


def test_plain_letters_are_what_a_user_wrote() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    tokenizer.chat_template = templates.CHATML
    found = encode(PromptEncoder(tokenizer, 10**6), ["a<|im_end|>b"])
    assert tokenizer.decode(found) == "<|im_start|>user\na<|im_end|>b<|im_end|>\n<|im_start|>assistant\n"
    assert found.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1


MADE: dict[str, StandIns] = {}


def _stand_ins(kind: str) -> StandIns:
    if kind not in MADE:
        MADE[kind] = StandIns(TOKENIZERS[kind])
    return MADE[kind]


@pytest.mark.parametrize("end", [False, True])
async def test_a_text_gets_one_beginning_and_no_end(end: bool) -> None:
    tokenizer = kinds.dressing(end=end)
    begin, last = tokenizer.convert_tokens_to_ids(["<s>", "<|im_end|>"])
    encoder = PromptEncoder(tokenizer, 512)
    plain = await encoder.encode("hi")
    assert plain == (begin, *tokenizer.encode("hi", add_special_tokens=False))
    assert await encoder.encode("<s>hi") == plain
    assert await encoder.encode("hi<|im_end|>") == (*plain, last)


async def test_a_text_gets_nothing_where_the_tokenizer_adds_nothing() -> None:
    tokenizer = kinds.dressing(begin=False, end=True)
    found = await PromptEncoder(tokenizer, 512).encode("hi")
    assert list(found) == tokenizer.encode("hi", add_special_tokens=False)


@EVERY
@pytest.mark.parametrize("name", [*TEMPLATES, "shouting"])
@pytest.mark.parametrize("allows", [False, True])
@settings(max_examples=25, deadline=None)
@given(texts=st.lists(SPELT, min_size=1, max_size=3), repeats=st.integers(1, 20))
def test_a_chat_that_fits_is_not_refused_before_it_is_rendered(
    kind: str,
    name: str,
    allows: bool,
    texts: list[str],
    repeats: int,
    encoders: dict[tuple[str, str], PromptEncoder],
) -> None:
    texts = [text * repeats for text in texts]
    messages = tuple(ChatMessage(turn["role"], turn["content"]) for turn in turns_of(texts))
    prompt = ChatPrompt(messages, allow_special_tokens=allows)
    if name == "shouting":
        tokenizer = TOKENIZERS[kind]
        tokenizer.chat_template = templates.SHOUTING
        encoder = PromptEncoder(tokenizer, 10**6)
    else:
        encoder = encoders[kind, name]
    num_tokens = len(asyncio.run(encoder.encode(prompt)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenising, "LONG_TEXT_CHARS", 1)
        patch.setattr(encoder._tokeniser, "_max_tokens", num_tokens)
        asyncio.run(encoder._tokeniser.refuse_beyond_bound(chats._kept_texts(prompt)))


class NeverRenders:
    """Stands where the processes are."""

    async def render(self, request: dict[str, Any]) -> Rendered:
        raise AssertionError(f"{len(request['messages'])} messages were rendered")

    def close(self) -> None:
        pass


@pytest.mark.parametrize("allows", [False, True])
@pytest.mark.parametrize("role", ["user", "system", "tool"])
@pytest.mark.parametrize("text", ["<|im_end|>", "hello ", "<|IM_START|>", "\U0001f600"])
async def test_a_chat_that_cannot_fit_is_too_long_before_a_template_sees_it(text: str, role: str, allows: bool) -> None:
    tokenizer = kinds.ALL["byte-level"]()
    tokenizer.chat_template = templates.CHATML
    encoder = PromptEncoder(tokenizer, 2_048)
    encoder._chats._processes = NeverRenders()  # type: ignore[assignment]
    long = text * (3_900_000 // len(text))
    halves = (long[: len(long) // 2], long[len(long) // 2 :])
    for message in (ChatMessage(role, long), ChatMessage(role, "", parts=tuple(map(TextPart, halves)))):
        before_s = time.monotonic()
        with pytest.raises(PromptTooLongError, match="at least"):
            await encoder.encode(ChatPrompt((ChatMessage("user", "hi"), message), allow_special_tokens=allows))
        assert time.monotonic() - before_s < 20
    encoder.close()
