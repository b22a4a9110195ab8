"""Commands that generate: generate, run, chat."""

from pathlib import Path
from typing import Annotated

import typer

from hotslot.cli.answer_options import AnswerOptions, with_answer_options
from hotslot.cli.answers import stream_answer
from hotslot.cli.chats import converse
from hotslot.cli.options import ReferenceArgument, parse_selection
from hotslot.cli.prompts import read_prompt, refuse_without_chat
from hotslot.contract.generation import AdapterSelection, ChatMessage
from hotslot.errors import EmptyPromptError, FieldViolation, InvalidRequestError

PromptFileOption = Annotated[
    Path | None, typer.Option("--file", "-f", metavar="FILE", help="File with the prompt; - is standard input.")
]
ChatOption = Annotated[
    bool | None,
    typer.Option("--chat/--raw", help="Render the prompt with the chat template, or take the text as it is."),
]
PrefillOption = Annotated[
    str, typer.Option("--prefill", metavar="TEXT", help="Beginning of the answer, with the chat template.")
]


@with_answer_options
def generate(
    answer: AnswerOptions,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", help="The prompt; - reads it from standard input, as a pipe does."),
    ] = None,
    file: PromptFileOption = None,
    chat: ChatOption = None,
    prefill: PrefillOption = "",
) -> None:
    """Generate from one prompt and stream the answer.

    Without --chat or --raw, the chat template is used where the model has one.
    JSON lines: {event: "started" | "chunk" | "finished", …}.
    """
    text = read_prompt(prompt, file)
    if text is None:
        raise InvalidRequestError([FieldViolation("PROMPT", "is missing: name one, pipe it, or say -f FILE")])
    _generate(answer, text, (), chat, prefill)


@with_answer_options
def run(
    answer: AnswerOptions,
    reference: ReferenceArgument,
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]…", help="The prompt; without one, a chat on a terminal.")
    ] = None,
    file: PromptFileOption = None,
) -> None:
    """Answer a prompt with an adapter, or chat with it.

    JSON lines: as `generate`.
    """
    selection = parse_selection(reference)
    text = read_prompt(" ".join(prompt) if prompt else None, file)
    if text is None:
        converse(answer, (selection,))
    else:
        _generate(answer, text, (selection,), None, "")


@with_answer_options
def chat(answer: AnswerOptions) -> None:
    """Talk to the model, a line at a time; /help lists what else can be said.

    JSON lines: as `generate`, one line of standard input a turn.
    """
    converse(answer, ())


def _generate(
    answer: AnswerOptions, text: str, adapters: tuple[AdapterSelection, ...], chat: bool | None, prefill: str
) -> None:
    answer.selections()  # What is wrong with them is said before anyone is called.
    if not text:
        raise EmptyPromptError  # with a chat template around it, the model would answer something
    with answer.client() as client:
        # Of the worker that answers, which another one than --worker's may be.
        chosen = () if answer.base_only else (*adapters, *answer.selections())
        as_chat = client.model_info(adapters=chosen).has_chat_template if chat is None else chat
        if not as_chat:
            refuse_without_chat(
                {
                    "--system": answer.system,
                    "--prefill": prefill,
                    "--tools": answer.tools,
                    "--template-arg": answer.template_arg,
                    "--template": answer.template,
                }
            )
        asked = answer.prompt(ChatMessage("user", text), prefill=prefill) if as_chat else text
        request = answer.request(client, asked, adapters)
        stream_answer(client.generate(request, timeout_s=answer.timeout_s), as_json=answer.as_json)
