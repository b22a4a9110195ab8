"""Commands that generate: generate, chat."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hotslot.cli import options
from hotslot.cli.options import JsonOption, StoreOption, TenantOption, WorkerOption, open_client, parse_selection
from hotslot.cli.output import print_event, say
from hotslot.cli.prompts import bound_of, chat_prompt, input_lines, refuse_without_chat, standard_input
from hotslot.cli.rendering import human_duration, short_digest
from hotslot.clients.blocking import BlockingHotslotClient
from hotslot.contract.generation import (
    DEFAULT_MAX_TOKENS,
    AdapterSelection,
    ChatMessage,
    ChatPrompt,
    Chunk,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Logprobs,
    Sampling,
    Started,
    Stop,
)
from hotslot.errors import EmptyPromptError, HotslotError

AdapterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter", "-a", metavar="REF[=WEIGHT]", help="An adapter, repeatable; several are added up by weight."
    ),
]
SystemOption = Annotated[str, typer.Option("--system", help="The system message of the chat.")]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        "-n",
        help=f"At most this many tokens; {DEFAULT_MAX_TOKENS} unless given, 0: as many as fit.",
    ),
]
TemperatureOption = Annotated[float, typer.Option("--temperature", "-t", help="Temperature of sampling; 0: greedy.")]
TopPOption = Annotated[
    float, typer.Option("--top-p", help="Draw from the likeliest tokens with this much probability; 1: no limit.")
]
TopKOption = Annotated[int, typer.Option("--top-k", help="Draw from the K most likely tokens; 0: no limit.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="The same seed gives the same answer.")]
StopOption = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="End the answer before TEXT; repeatable.")
]
TemplateArgumentOption = Annotated[
    list[str] | None,
    typer.Option("--template-arg", metavar="NAME=JSON", help="A variable of the chat template; repeatable."),
]
ToolsOption = Annotated[
    Path | None, typer.Option("--tools", metavar="FILE", help="JSON list of the tools that the chat template gets.")
]
AllowSpecialOption = Annotated[
    bool, typer.Option("--allow-special-tokens", help="Read special tokens in messages as such, not as text.")
]
KeepSpecialOption = Annotated[bool, typer.Option("--keep-special-tokens", help="Show special tokens in the answer.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Deadline of the request.")]
RouteOption = Annotated[
    bool, typer.Option("--route/--direct", help="Ask the store for the best worker, or call --worker.")
]
BaseOnlyOption = Annotated[
    bool, typer.Option("--base-only", help="Answer with the base model, whatever the default adapters are.")
]


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt; - reads it from standard input.")],
    adapter: AdapterOption = None,
    base_only: BaseOnlyOption = False,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--raw", help="Render the prompt with the chat template, or take the text as it is."),
    ] = None,
    system: SystemOption = "",
    prefill: Annotated[
        str, typer.Option("--prefill", metavar="TEXT", help="Beginning of the answer, with the chat template.")
    ] = "",
    tools: ToolsOption = None,
    template_arg: TemplateArgumentOption = None,
    allow_special_tokens: AllowSpecialOption = False,
    keep_special_tokens: KeepSpecialOption = False,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    seed: SeedOption = None,
    stop: StopOption = None,
    logprobs: Annotated[
        int | None, typer.Option("--logprobs", metavar="N", help="Log-probabilities, with N alternatives.")
    ] = None,
    timeout_s: TimeoutOption = 600.0,
    route: RouteOption = False,
    store: StoreOption = options.STORE,
    worker: WorkerOption = options.WORKER,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Generate from one prompt and stream the answer.

    Without --chat or --raw, the chat template is used where the model has one.
    JSON lines: {event: "started" | "chunk" | "finished", …}.
    """
    selections = tuple(parse_selection(text) for text in adapter or [])
    text = standard_input() if prompt == "-" else prompt
    if not text:
        raise EmptyPromptError  # with a chat template around it, the model would answer something
    with open_client(store=store, worker=worker, tenant=tenant, route=route) as client:
        as_chat = client.worker.model_info().has_chat_template if chat is None else chat
        if not as_chat:
            refuse_without_chat(
                {"--system": system, "--prefill": prefill, "--tools": tools, "--template-arg": template_arg}
            )
        system_turns = (ChatMessage("system", system),) if system else ()
        messages = (*system_turns, ChatMessage("user", text))
        request = GenerationRequest(
            prompt=chat_prompt(
                messages,
                prefill=prefill,
                tools=tools,
                template_arguments=template_arg or (),
                allow_special_tokens=allow_special_tokens,
            )
            if as_chat
            else text,
            adapters=selections,
            base_only=base_only,
            sampling=Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed),
            stop=Stop(max_tokens=bound_of(max_tokens), strings=tuple(stop or ())),
            logprobs=None if logprobs is None else Logprobs(logprobs),
            skip_special_tokens=not keep_special_tokens,
        )
        stream_answer(client.generate(request, timeout_s=timeout_s), as_json=as_json)


def chat(
    adapter: AdapterOption = None,
    base_only: BaseOnlyOption = False,
    system: SystemOption = "",
    tools: ToolsOption = None,
    template_arg: TemplateArgumentOption = None,
    allow_special_tokens: AllowSpecialOption = False,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    seed: SeedOption = None,
    timeout_s: TimeoutOption = 600.0,
    route: RouteOption = False,
    store: StoreOption = options.STORE,
    worker: WorkerOption = options.WORKER,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Talk to the model, a line at a time. /adapters REF[=WEIGHT]… changes them, /reset forgets, /quit ends.

    JSON lines: as `generate`, one line of standard input a turn.
    """
    selections = tuple(parse_selection(text) for text in adapter or [])
    with open_client(store=store, worker=worker, tenant=tenant, route=route) as client:
        conversation = Conversation(
            GenerationRequest(
                prompt=chat_prompt(
                    (),
                    tools=tools,
                    template_arguments=template_arg or (),
                    allow_special_tokens=allow_special_tokens,
                ),
                base_only=base_only,
                sampling=Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed),
                stop=Stop(max_tokens=bound_of(max_tokens)),
            ),
            selections,
            system,
        )
        interactive = sys.stdin.isatty() and not as_json
        if interactive:
            say(f"{client.worker.model_info().base_model}; /adapters REF…, /reset, /quit")
        for line in _lines(interactive):
            if line in ("/quit", "/exit"):
                return
            try:
                if not conversation.command(line):
                    conversation.answer(client, line, timeout_s=timeout_s, as_json=as_json)
            except HotslotError as exc:
                if not interactive:
                    raise
                say(f"hotslot: {exc.message}")


class Conversation:
    """The turns so far, and the adapters that answer the next one."""

    def __init__(self, template: GenerationRequest, adapters: tuple[AdapterSelection, ...], system: str) -> None:
        self._template = template
        self._adapters = adapters
        self._system = (ChatMessage("system", system),) if system else ()
        self.turns: tuple[ChatMessage, ...] = self._system

    def command(self, line: str) -> bool:
        """Obey a line that begins with a slash; False for anything else."""
        if not line.startswith("/"):
            return not line
        name, *arguments = line.split()
        match name:
            case "/adapters":
                self._adapters = tuple(parse_selection(text) for text in arguments)
            case "/reset":
                self.turns = self._system
            case _:
                say("unknown command; there are /adapters REF[=WEIGHT]…, /reset, /quit")
        return True

    def answer(self, client: BlockingHotslotClient, line: str, *, timeout_s: float, as_json: bool) -> None:
        """Stream the answer to one more turn; a turn that failed or was interrupted is forgotten."""
        asked = (*self.turns, ChatMessage("user", line))
        template = self._template
        assert isinstance(template.prompt, ChatPrompt)
        request = replace(template, prompt=replace(template.prompt, messages=asked), adapters=self._adapters)
        try:
            text = stream_answer(client.generate(request, timeout_s=timeout_s), as_json=as_json)
        except KeyboardInterrupt:
            say("\n(stopped)")
            return
        self.turns = (*asked, ChatMessage("assistant", text))


def stream_answer(events: Iterator[GenerationEvent], *, as_json: bool) -> str:
    """Print a generation as it comes, and on a terminal what served it; returns its text."""
    pieces: list[str] = []
    started: Started | None = None
    for event in events:
        if as_json:
            print_event(type(event).__name__.lower(), event)
        match event:
            case Started():
                started = event
            case Chunk():
                pieces.append(event.text)
                if not as_json:
                    _print_chunk(event)
            case Finished():
                if not as_json:
                    print(flush=True)
                    if started is not None and sys.stderr.isatty():
                        say(served_line(started, event))
    return "".join(pieces)


def _print_chunk(chunk: Chunk) -> None:
    if not chunk.logprobs:
        print(chunk.text, end="", flush=True)
        return
    print(f"{chunk.text!r}")
    for token in chunk.logprobs:
        others = "  ".join(f"{token_id}: {logprob:.3f}" for token_id, logprob in token.alternatives)
        print(f"  token {token.token_id}: {token.logprob:.3f}" + (f"  ({others})" if others else ""), flush=True)


def served_line(started: Started, finished: Finished) -> str:
    """Line below an answer: the worker and the versions that served it, and the time it took."""
    who = " + ".join(
        f"{a.reference.partition('@')[0]}@{short_digest(a.digest)}" + (f" × {a.weight:g}" if a.weight != 1 else "")
        for a in started.adapters
    )
    usage, timings = finished.usage, finished.timings
    decode_s = timings.total_s - timings.time_to_first_token_s
    rate = f", {(usage.completion_tokens - 1) / decode_s:.0f} tokens/s" if decode_s > 0 else ""
    load = f", adapter load {human_duration(timings.adapter_load_s)}" if timings.adapter_load_s else ""
    return (
        f"— {who or 'base model'} on {started.worker_id}: {usage.completion_tokens} tokens ({finished.reason}), "
        f"first after {human_duration(timings.time_to_first_token_s)}{load}{rate}"
    )


def _lines(interactive: bool) -> Iterator[str]:
    """Lines of standard input until it ends; on a terminal with a prompt, editing and history."""
    if not interactive:
        yield from input_lines()
        return
    with suppress(ImportError):
        import readline  # noqa: F401 (importing it is what gives input() editing and history)
    while True:
        try:
            yield input("› ").strip()
        except EOFError:
            print(file=sys.stderr)
            return
