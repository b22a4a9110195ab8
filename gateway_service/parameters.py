"""Every parameter that OpenAI's clients and vLLM's users send: supported, refused with a reason, or ignored.

`python -m gateway_service.parameters` prints it as docs/gateway.md has it.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gateway_service.errors import ApiError


class Treatment(StrEnum):
    """Fate of a parameter."""

    SUPPORTED = "supported"
    REFUSED = "refused"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One name in the body of a request."""

    name: str
    treatment: Treatment
    note: str
    """Note on the parameter: its difference from OpenAI's, or the reason for which it is refused or ignored."""
    neutral: tuple[object, ...] = ()
    """Values of a refused parameter that ask for nothing, besides null: they are taken."""


def _supported(name: str, note: str = "") -> Parameter:
    return Parameter(name, Treatment.SUPPORTED, note)


def _refused(name: str, note: str, *neutral: object) -> Parameter:
    return Parameter(name, Treatment.REFUSED, note, neutral)


def _ignored(name: str, note: str) -> Parameter:
    return Parameter(name, Treatment.IGNORED, note)


NO_CONSTRAINT = "tokens are not constrained by a grammar or schema"
_NO_STORE = "no request and no answer is kept"
_LABEL = "a label of the caller's; nothing is kept under it"

_SAMPLING = (
    _supported("frequency_penalty", "taken off a token's logit for each time that the answer has it; -2 to 2"),
    _supported("logit_bias", "keys are token ids"),
    _supported("max_tokens", "most tokens of the answer"),
    _supported("model", "a base model's name, or a reference `name[:tag][@sha256:…]`"),
    _supported("n", "up to the rows of a worker"),
    _supported("presence_penalty", "taken off the logits of tokens that the answer has; -2 to 2"),
    _supported("seed", "the same seed draws the same tokens from the same logits, within a version of the worker"),
    _supported("stop", "up to 16 texts"),
    _supported("stream", "answer in server-sent events, as tokens come"),
    _supported("stream_options", "`include_usage`; `include_obfuscation` is ignored"),
    _supported("temperature", "1 where it is left out; 0 is greedy; up to 100"),
    _supported("top_p", "above 0 and at most 1, which is no limit"),
    _ignored("user", _LABEL),
)

_EXTRAS = (
    _supported("adapters", "`[{reference, weight}]`, a mix; `model` is the base model's name then"),
    _supported("top_k", "0 or -1: no limit"),
    _supported("min_p", "least probability as a share of the most likely token's; 0 to 1"),
    _supported("repetition_penalty", "0.01 to 100; 1 is none"),
    _supported("min_tokens", "least tokens of the answer"),
    _supported("stop_token_ids", "tokens that end the answer, beside the model's own"),
    _supported("ignore_eos", "go on after the model's own end tokens"),
    _supported("skip_special_tokens", "leave special tokens out of the text; true where it is left out"),
    _supported("include_stop_str_in_output", "leave the stop text at the answer's end"),
    _supported("priority", "as vLLM has it: lower runs first, within one tenant"),
    _supported("request_id", "also as the header x-request-id"),
    _supported("return_token_ids", "each choice has its `token_ids`; those of the prompt are not returned"),
    _ignored("spaces_between_special_tokens", "none are put between them"),
    _ignored("cache_salt", "the prefix cache is apart for each tenant"),
    _refused("allowed_token_ids", NO_CONSTRAINT),
    _refused("bad_words", NO_CONSTRAINT),
    _refused("best_of", "choices are not ranked; ask for `n`", 1),
    _refused("guided_choice", NO_CONSTRAINT),
    _refused("guided_grammar", NO_CONSTRAINT),
    _refused("guided_json", NO_CONSTRAINT),
    _refused("guided_regex", NO_CONSTRAINT),
    _refused("kv_transfer_params", "keys and values stay on their worker"),
    _refused("length_penalty", "there is no beam search", 1, 1.0),
    _refused("logits_processors", "no code of a request is run", []),
    _refused("prompt_logprobs", "those of a completion's prompt come with echo and logprobs; of chats over gRPC"),
    _refused("structured_outputs", NO_CONSTRAINT),
    _refused("truncate_prompt_tokens", "a prompt is served whole or refused"),
    _refused("use_beam_search", "there is no beam search", False),
)

CHAT: tuple[Parameter, ...] = (
    *_SAMPLING,
    _supported("messages", "contents are text, or parts of type `text`; `developer` is taken as `system`"),
    _supported("max_completion_tokens", "as many as fit where neither it nor max_tokens is given"),
    _supported("logprobs", "log-probabilities of the answer's tokens"),
    _supported("top_logprobs", "up to 20"),
    _supported(
        "tools",
        "given to the chat template; calls come back as `tool_calls` where HOTSLOT_GATEWAY_TOOL_PARSER names the "
        "models' format, else as text",
    ),
    _supported("tool_choice", "`auto`, or `none`, which leaves the tools out; a call cannot be forced"),
    _supported("response_format", f"`text`; {NO_CONSTRAINT}"),
    _supported("reasoning_effort", "a variable of the chat template"),
    _supported("modalities", "`text`"),
    _refused("audio", "there is no audio"),
    _refused("function_call", "replaced by tool_choice", "auto", "none"),
    _refused("functions", "replaced by tools", []),
    _refused("moderation", "nothing is moderated"),
    _refused("parallel_tool_calls", "how many tools an answer calls cannot be bounded", True),
    _refused("web_search_options", "nothing is searched"),
    _ignored("metadata", _NO_STORE),
    _ignored("prediction", "a hint for speed"),
    _ignored("prompt_cache_key", "prefixes of prompts are found without a key"),
    _ignored("prompt_cache_options", "prefixes of prompts are found without a key"),
    _ignored("prompt_cache_retention", "prefixes of prompts are kept as long as there is room"),
    _ignored("safety_identifier", _LABEL),
    _ignored("service_tier", "there is one"),
    _ignored("store", _NO_STORE),
    _ignored("verbosity", "models have no such setting; say it in the prompt"),
    *_EXTRAS,
    _supported("add_generation_prompt", "open the assistant's turn; true where it is left out"),
    _supported("continue_final_message", "go on with the last message rather than answer it"),
    _supported("chat_template_kwargs", "variables of the chat template"),
    _supported("chat_template", "the name of one of the model's templates, never a template itself"),
    _refused("add_special_tokens", "the chat template writes them", False),
    _refused("documents", "pass them as chat_template_kwargs", []),
    _refused("echo", "a prompt that a template made is not echoed", False),
    _refused("mm_processor_kwargs", "there is text only"),
)

COMPLETIONS: tuple[Parameter, ...] = (
    *_SAMPLING,
    _supported("prompt", "text, texts, token ids, or lists of token ids; up to 64 prompts"),
    _supported("logprobs", "up to 20 alternatives"),
    _supported("echo", "of text; with logprobs those of the prompt's tokens too, of the first one null"),
    *_EXTRAS,
    _refused("suffix", "models are not asked to fill in", ""),
    _refused("add_special_tokens", "tokens before a text are added unless it begins with them", True),
    _refused("prompt_embeds", "prompts are text or tokens"),
    _refused("response_format", NO_CONSTRAINT, {"type": "text"}),
)


def supported(parameters: tuple[Parameter, ...], body: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a body that is to be served; raises ApiError for what is refused or not known."""
    known = {parameter.name: parameter for parameter in parameters}
    taken = {}
    for name, value in body.items():
        parameter = known.get(name)
        if parameter is None:
            raise _unknown(name, known)
        if parameter.treatment is Treatment.SUPPORTED:
            taken[name] = value
        elif parameter.treatment is Treatment.REFUSED and value is not None and not _is_neutral(parameter, value):
            message = f"{name} is not supported: {parameter.note}"
            raise ApiError(400, "UNSUPPORTED_PARAMETER", message, param=name)
    return taken


def _is_neutral(parameter: Parameter, value: object) -> bool:
    return any(type(value) is type(neutral) and value == neutral for neutral in parameter.neutral)


def _unknown(name: str, known: Mapping[str, Parameter]) -> ApiError:
    shown = name if len(name) <= 64 else name[:63] + "…"
    close = difflib.get_close_matches(name[:64], known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return ApiError(400, "UNKNOWN_PARAMETER", f"there is no parameter {shown!r}{hint}", param=shown)


def markdown() -> str:
    """Both tables for the documentation."""
    lines = []
    for title, parameters in (("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETIONS)):
        lines += [f"### `{title}`", "", "| parameter | | notes |", "|---|---|---|"]
        order = list(Treatment)
        for parameter in sorted(parameters, key=lambda row: (order.index(row.treatment), row.name)):
            lines.append(f"| `{parameter.name}` | {parameter.treatment} | {_note(parameter)} |")
        lines.append("")
    return "\n".join(lines)


def _note(parameter: Parameter) -> str:
    neutral = ", ".join(f"`{value!r}`" for value in parameter.neutral)
    return (f"{parameter.note} (taken: {neutral})" if neutral else parameter.note).replace("|", "\\|")


if __name__ == "__main__":
    print(markdown())  # noqa: T201
