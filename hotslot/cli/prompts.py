"""Parts of a prompt on the command line: standard input, template arguments, tools, bounds of the answer."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hotslot.contract.generation import ChatMessage, ChatPrompt
from hotslot.errors import FieldViolation, InvalidRequestError


def standard_input() -> str:
    """All of standard input; raises InvalidRequestError where it is not UTF-8."""
    return "".join(_decoded(sys.stdin))


def read_prompt(prompt: str | None, file: Path | None) -> str | None:
    """The prompt from the command line, a file or a pipe; `-` is standard input, and None means there is none."""
    if prompt is not None and file is not None:
        raise InvalidRequestError([FieldViolation("--file", "stands beside a prompt; give one of them")])
    if prompt == "-" or file == Path("-") or (prompt is None and file is None and not sys.stdin.isatty()):
        return standard_input()
    if file is None:
        return prompt
    try:
        return file.read_text("utf-8")
    except OSError as exc:
        raise InvalidRequestError([FieldViolation("--file", f"{file}: {exc.strerror or exc}")]) from exc
    except UnicodeDecodeError as exc:
        found = f"{file}: found the byte 0x{exc.object[exc.start]:02x} at {exc.start}, expected UTF-8"
        raise InvalidRequestError([FieldViolation("--file", found)]) from exc


def input_lines() -> Iterator[str]:
    """Lines of standard input without their ends, as they come; raises as `standard_input`."""
    return (line.strip() for line in _decoded(sys.stdin))


def bound_of(max_tokens: int | None) -> int | None:
    """`--max-tokens` as the client has it: the default where it is not given, none for 0."""
    if max_tokens is None:
        return 0
    return None if max_tokens == 0 else max_tokens


def chat_prompt(
    messages: Sequence[ChatMessage],
    *,
    prefill: str = "",
    tools: Path | None = None,
    template_arguments: Sequence[str] = (),
    allow_special_tokens: bool = False,
    template: str = "",
) -> ChatPrompt:
    """A conversation with the options that commands have for it; a prefill is the beginning of the answer."""
    opened = (ChatMessage("assistant", prefill),) if prefill else ()
    return ChatPrompt(
        (*messages, *opened),
        continue_final_message=bool(prefill),
        tools=read_tools(tools) if tools is not None else (),
        template_arguments=dict(parse_argument(text) for text in template_arguments),
        allow_special_tokens=allow_special_tokens,
        template=template,
    )


def refuse_without_chat(options: Mapping[str, object]) -> None:
    """Raise InvalidRequestError for an option that is given, by its name, and that a prompt without a chat drops."""
    for name, value in options.items():
        if value:
            problem = "needs the chat template: leave it out, or --raw, with a model that has a template"
            raise InvalidRequestError([FieldViolation(name, problem)])


def parse_argument(text: str) -> tuple[str, object]:
    """`NAME=JSON`; what is no JSON is a string."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        problem = f"found {text[:80]!r}, expected NAME=JSON: enable_thinking=false"
        raise InvalidRequestError([FieldViolation("--template-arg", problem)])
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def read_tools(path: Path) -> list[dict[str, Any]]:
    """The tools of a JSON file that holds a list of objects, or one object."""
    problem = ""
    try:
        document = json.loads(path.read_bytes())
    except OSError as exc:
        problem = exc.strerror or str(exc)
    except (ValueError, RecursionError) as exc:
        problem = f"it is not JSON: {exc}"
    else:
        tools = document if isinstance(document, list) else [document]
        if all(isinstance(tool, dict) for tool in tools):
            return tools
        problem = "expected a list of JSON objects"
    raise InvalidRequestError([FieldViolation("--tools", f"{path}: {problem}")])


def _decoded(lines: Iterable[str]) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as exc:
        found = f"found the byte 0x{exc.object[exc.start]:02x} at {exc.start}, expected {exc.encoding.upper()}"
        raise InvalidRequestError([FieldViolation("standard input", found)]) from exc
