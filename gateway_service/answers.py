"""Turns the events of a generation into OpenAI's objects: whole answers, and the chunks of streams. Pure."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gateway_service import token_logprobs
from gateway_service.told_calls import Object, ToldCalls
from gateway_service.translation import WantedAnswer
from hotslot.contract.generation import Chunk, Finished, FinishReason, GenerationEvent, Started, TokenLogprob

Kind = Literal["chat", "completion"]

_OBJECTS: dict[Kind, tuple[str, str]] = {
    "chat": ("chat.completion", "chat.completion.chunk"),
    "completion": ("text_completion", "text_completion"),
}
_ID_PREFIXES: dict[Kind, str] = {"chat": "chatcmpl-", "completion": "cmpl-"}


@dataclass
class _Choice:
    """One choice, as far as it has come."""

    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finished: Finished | None = None
    told_chars: int = 0
    """Characters before the next token with a log-probability."""
    echo: "_Echo | None" = None
    """The prompt's tokens, until they are told."""
    calls: ToldCalls | None = None
    """Calls of tools in its text, where these are looked for."""


@dataclass(frozen=True)
class _Echo:
    """Log-probabilities of an echoed prompt."""

    first: str
    """Text of the first token, which has none."""
    rest: Sequence[TokenLogprob]


class HttpAnswer:
    """One answer as it comes; choices of several prompts are numbered through."""

    def __init__(self, kind: Kind, wanted: WantedAnswer, request_id: str) -> None:
        self._kind: Kind = kind
        self._wanted = wanted
        self._id = _ID_PREFIXES[kind] + request_id
        self._created = int(time.time())
        self._choices = [_Choice() for _ in range(len(wanted.requests) * wanted.num_choices)]
        self.started: dict[int, Started] = {}
        """By prompt."""

    def add(self, prompt: int, event: GenerationEvent) -> Iterator[Object]:
        """Take an event in; yields the chunks of a stream that it makes."""
        first = prompt * self._wanted.num_choices
        match event:
            case Started():
                self.started[prompt] = event
                for index in range(first, first + self._wanted.num_choices):
                    yield from self._opening(prompt, index)
            case Chunk():
                yield from self._piece(prompt, first + event.choice, event)
            case Finished():
                yield from self._ending(prompt, first + event.choice, event)

    @property
    def is_complete(self) -> bool:
        """True when every choice has ended."""
        return all(choice.finished is not None for choice in self._choices)

    def usage(self) -> Object:
        """Tokens of the whole request."""
        prompt_tokens = cached_tokens = completion_tokens = 0
        for index, choice in enumerate(self._choices):
            if choice.finished is None:
                continue
            usage = choice.finished.usage
            completion_tokens += usage.completion_tokens
            if index % self._wanted.num_choices == 0:
                prompt_tokens += usage.prompt_tokens
                cached_tokens += usage.cached_tokens
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        }

    def last_chunk(self) -> Object:
        """The chunk that carries the usage and no choice."""
        return {**self._head(0, is_chunk=True), "choices": [], "usage": self.usage()}

    def whole(self) -> Object:
        """The answer in one piece."""
        choices = [self._whole_choice(index, choice) for index, choice in enumerate(self._choices)]
        return {**self._head(0, is_chunk=False), "choices": choices, "usage": self.usage()}

    def _head(self, prompt: int, *, is_chunk: bool) -> Object:
        return {
            "id": self._id,
            "object": _OBJECTS[self._kind][is_chunk],
            "created": self._created,
            "model": self._wanted.model,
            "system_fingerprint": fingerprint(self.started[prompt]),
        }

    def _chunk(self, prompt: int, choice: Object) -> Object:
        usage = {"usage": None} if self._wanted.include_usage else {}
        return {**self._head(prompt, is_chunk=True), "choices": [choice], **usage}

    def _opening(self, prompt: int, index: int) -> Iterator[Object]:
        echoed = self._wanted.echoed[prompt] if self._wanted.echoed else ""
        choice = self._choices[index]
        choice.text.append(echoed)
        choice.told_chars = len(echoed)
        format_ = self._wanted.tool_formats.get(self.started[prompt].base_model_digest)
        choice.calls = ToldCalls(format_) if format_ is not None else None
        scored = self.started[prompt].prompt_logprobs
        if echoed and self._wanted.requests[0].logprobs is not None:
            # Its tokens but the first are told; what is left of the text is that one's.
            begin = max(0, len(echoed) - token_logprobs.text_length(scored))
            choice.told_chars, choice.echo = 0, _Echo(echoed[:begin], scored)
        if self._kind == "chat":
            delta = {"role": "assistant", "content": ""}
            yield self._chunk(prompt, {"index": index, "delta": delta, "logprobs": None, "finish_reason": None})
        elif echoed:
            told = self._logprobs(choice, ()) if self._wanted.is_stream and choice.echo is not None else None
            yield self._chunk(prompt, {"index": index, "text": echoed, "logprobs": told, "finish_reason": None})

    def _piece(self, prompt: int, index: int, event: Chunk) -> Iterator[Object]:
        choice = self._choices[index]
        if not self._wanted.is_stream:
            choice.text.append(event.text)
            choice.token_ids += event.token_ids
            choice.logprobs += event.logprobs
            return
        if not (event.text or event.logprobs or self._wanted.wants_token_ids):
            return
        said = {"delta": self._delta(choice, event.text)} if self._kind == "chat" else {"text": event.text}
        if choice.calls is not None and not (said["delta"] or event.logprobs or self._wanted.wants_token_ids):
            return
        piece: Object = {
            "index": index,
            **said,
            "logprobs": self._logprobs(choice, event.logprobs) if event.logprobs else None,
            "finish_reason": None,
        }
        if self._wanted.wants_token_ids:
            piece["token_ids"] = list(event.token_ids)
        yield self._chunk(prompt, piece)

    def _delta(self, choice: _Choice, text: str) -> Object:
        """A piece of a streamed chat, as far as it is known to be content or a call."""
        return {"content": text} if choice.calls is None else choice.calls.delta(text)

    def _ending(self, prompt: int, index: int, event: Finished) -> Iterator[Object]:
        choice = self._choices[index]
        choice.finished = event
        last = event.stop_string if self._wanted.keeps_stop_string else ""
        choice.text.append(last)
        delta = {"content": last} if last else {}
        if choice.calls is not None and self._wanted.is_stream:
            delta = choice.calls.delta(last, is_end=True)
        said = {"delta": delta} if self._kind == "chat" else {"text": last}
        yield self._chunk(prompt, {"index": index, **said, "logprobs": None, **_reasons(event, choice.calls)})

    def _whole_choice(self, index: int, choice: _Choice) -> Object:
        text = "".join(choice.text)
        assert choice.finished is not None
        message = {"role": "assistant", "content": text, "refusal": None}
        if choice.calls is not None:
            message |= choice.calls.message(text)
        whole: Object = {
            "index": index,
            **({"message": message} if self._kind == "chat" else {"text": text}),
            "logprobs": self._logprobs(choice, choice.logprobs)
            if self._wanted.requests[0].logprobs is not None
            else None,
            **_reasons(choice.finished, choice.calls),
        }
        if self._wanted.wants_token_ids:
            whole["token_ids"] = choice.token_ids
        return whole

    def _logprobs(self, choice: _Choice, logprobs: Sequence[TokenLogprob]) -> Object:
        """Log-probabilities of the tokens that follow those before."""
        if self._kind == "chat":
            return token_logprobs.of_chat(logprobs)
        echo, choice.echo = choice.echo, None
        first, scored = (echo.first, [*echo.rest, *logprobs]) if echo is not None else (None, logprobs)
        told = token_logprobs.of_completion(scored, choice.told_chars, first)
        choice.told_chars += len(first or "") + token_logprobs.text_length(scored)
        return told


def fingerprint(started: Started) -> str:
    """Digests that served a request: the base model's digest, and each adapter with its digest and weight."""
    adapters = (f"{adapter.reference}@{adapter.digest}*{adapter.weight:g}" for adapter in started.adapters)
    return "+".join((started.base_model_digest, *adapters))


def served_headers(started: Started) -> dict[str, str]:
    """Digests that served a request, as headers of the response."""
    adapters = ", ".join(f"{a.reference}@{a.digest};weight={a.weight:g}" for a in started.adapters)
    return {
        "hotslot-base-model": started.base_model_digest,
        "hotslot-worker": started.worker_id,
        **({"hotslot-adapters": adapters} if adapters else {}),
    }


def _reasons(event: Finished, calls: ToldCalls | None) -> Object:
    """Reason for the end of a choice; `stop_reason` is vLLM's: the stop text or token that ended it."""
    reason = "length" if event.reason is FinishReason.LENGTH else "stop"
    if reason == "stop" and calls is not None and calls.count:
        reason = "tool_calls"
    return {"finish_reason": reason, "stop_reason": event.stop_string or event.stop_token_id}
