"""Models as the front of a worker knows them: one tokenizer, and chat templates that treat messages differently."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from tests.support import chat_templates as templates
from worker_service.front.prompts import PlainPrompt, PromptEncoder
from worker_service.front.validation import RequestLimits
from worker_service.templates.content import Form
from worker_service.templates.host import answer
from worker_service.templates.process import ModelTemplates, _decoded
from worker_service.templates.rendering import ChatRenderer, Rendered

SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<tool_call>", "<s><s>", "<beyond>")
PLAIN_ADDED = ("<think>", "</think>")
MAX_SEQUENCE_TOKENS = 1_024

RAISING = (
    "{% for m in messages %}{% if m.content %}{{ raise_exception(m.content * 40) }}{% endif %}{{ m.role }}{% endfor %}"
)
"""Refuses in the user's own words."""
BREAKING = "{% for m in messages %}{{ m.content[9] + m.role + n }}{% endfor %}"
"""Does what Python does not."""
STRING, EITHER, PARTS = (Form.STRING,), (Form.STRING, Form.PARTS), (Form.PARTS,)


@dataclass
class ByteTokenizer:
    """Tokenizer as transformers makes one, as far as the front uses it."""

    backend_tokenizer: Tokenizer
    added_tokens_decoder: Mapping[int, AddedToken]
    all_special_ids: Sequence[int]
    chat_template: Any = None
    special_tokens_map: Mapping[str, str] = field(
        default_factory=lambda: {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    )

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        return str(self.backend_tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))


class InThisProcess:
    """Renders at once, as the process for it would."""

    def __init__(self, model: ModelTemplates) -> None:
        self._renderer = ChatRenderer(model.sources, model.specials, model.variables)

    async def render(self, request: Mapping[str, Any]) -> Rendered:
        return _decoded(answer(self._renderer, json.dumps(request, ensure_ascii=False).encode()))


@dataclass(frozen=True)
class Model:
    """One of them; `forms` say in which form each template takes content."""

    templates: Mapping[str, str]
    forms: Mapping[str, tuple[Form, ...]]
    tokenizer: ByteTokenizer
    encoder: PromptEncoder


TEMPLATES: tuple[Mapping[str, tuple[str, tuple[Form, ...]]], ...] = (
    {"default": (templates.CHATML, STRING)},
    {"default": (templates.THINKING, STRING)},
    {"default": (templates.PARTS, PARTS)},
    {"default": (templates.EITHER, EITHER)},
    {"default": (templates.GEMMA, STRING)},
    {"default": (templates.ROLE_TOKENS, STRING)},
    {"default": (templates.CHATML, STRING), "tool_use": (templates.THINKING, STRING), "seen": (templates.PARTS, PARTS)},
    {"default": (RAISING, STRING)},
    {"default": (BREAKING, STRING)},
    {},
)


def byte_level() -> Tokenizer:
    """Bytes, a few merges, special tokens, and a token before every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("Ã", "¤"), ("<", "|"), ("|", ">"), ("i", "m")]
    vocabulary = {text: index for index, text in enumerate([*alphabet, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in PLAIN_ADDED])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    begin = tokenizer.token_to_id("<s>")
    assert begin is not None
    tokenizer.post_processor = processors.TemplateProcessing(single="<s>:0 $A:0", special_tokens=[("<s>", begin)])
    return tokenizer


BACKEND = byte_level()
NUM_ROWS = BACKEND.get_vocab_size(with_added_tokens=True) - 1
"""Rows of the embedding: the tokenizer knows one token more, `<beyond>`."""
LIMITS = RequestLimits(NUM_ROWS, MAX_SEQUENCE_TOKENS, max_choices=4, max_adapters=4)
EOS_IDS = (BACKEND.token_to_id("<|im_end|>"),)
SPECIAL_IDS = frozenset(BACKEND.token_to_id(text) for text in SPECIALS)


def answer_tokens(answer: bytes) -> list[int]:
    """Tokens that the model answers: mostly those of bytes, so that characters are torn, and special ones."""
    ids = _answer_ids()
    return [ids[byte] for byte in answer]


@cache
def _answer_ids() -> tuple[int, ...]:
    others = range(256, NUM_ROWS)
    return tuple(code if code < 224 else others[code % len(others)] for code in range(256))


def model(number: int) -> Model:
    """The model with this number; every number is one's."""
    return _model(number % len(TEMPLATES))


@cache
def _model(number: int) -> Model:
    made = TEMPLATES[number]
    sources = {name: source for name, (source, _) in made.items()}
    added = BACKEND.get_added_tokens_decoder()
    special_ids = sorted(token_id for token_id in SPECIAL_IDS if token_id is not None)
    chat_template = sources["default"] if list(sources) == ["default"] else sources
    tokenizer = ByteTokenizer(BACKEND, added, special_ids, chat_template or None)
    encoder = PromptEncoder(tokenizer, MAX_SEQUENCE_TOKENS)
    specials = [token.content for token in added.values() if token.special]
    # The processes have tests of their own, and a fuzzer would test little else.
    encoder._chats._processes = InThisProcess(ModelTemplates(sources, specials, tokenizer.special_tokens_map))  # type: ignore[assignment]
    return Model(sources, {name: forms for name, (_, forms) in made.items()}, tokenizer, encoder)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def encode(model: Model, prompt: PlainPrompt) -> tuple[int, ...]:
    """Token ids of a prompt, as the model's encoder has them; raises what that raises."""
    return _loop().run_until_complete(model.encoder.encode(prompt))
