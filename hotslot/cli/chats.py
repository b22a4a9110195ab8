"""Chats on the command line: the turns, and what is said with a slash."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from hotslot.cli.answer_options import AnswerOptions
from hotslot.cli.answers import stream_answer
from hotslot.cli.options import full_selection, parse_selection
from hotslot.cli.output import say
from hotslot.cli.prompts import input_lines
from hotslot.clients.blocking import BlockingHotslotClient
from hotslot.contract.generation import AdapterSelection, ChatMessage, ChatPrompt, GenerationRequest
from hotslot.errors import HotslotError

SLASHES = (
    ("/adapters REF[=WEIGHT]…", "answer with these adapters; none means the worker's defaults"),
    ("/system [TEXT]", "set the system message, or take it away; the turns stay"),
    ("/show", "show the adapters, the system message and the turns"),
    ("/reset", "forget the turns"),
    ("/quit", "end, as Ctrl-D does"),
)


def converse(answer: AnswerOptions, adapters: tuple[AdapterSelection, ...]) -> None:
    """Answer line after line of standard input, with `adapters` in front of those of the options."""
    answer.selections()
    with answer.client() as client:
        conversation = Conversation(answer.request(client, answer.prompt(), adapters), answer.system)
        interactive = sys.stdin.isatty() and not answer.as_json
        if interactive:
            say(f"{client.model_info(adapters=adapters).base_model}; /help lists what can be said beside questions")
        for line in _lines(interactive):
            if line in ("/quit", "/exit", "/bye"):
                return
            try:
                if not conversation.command(client, line):
                    conversation.answer(client, line, timeout_s=answer.timeout_s, as_json=answer.as_json)
            except HotslotError as exc:
                if not interactive:
                    raise
                say(f"hotslot: {exc.message}")


class Conversation:
    """The turns so far, and the adapters that answer the next one."""

    def __init__(self, template: GenerationRequest, system: str) -> None:
        self._template = template
        self._system = system
        self.turns: tuple[ChatMessage, ...] = ()

    def command(self, client: BlockingHotslotClient, line: str) -> bool:
        """Obey a line that begins with a slash; False for anything else."""
        if not line.startswith("/"):
            return not line
        name, _, rest = line.partition(" ")
        match name:
            case "/adapters":
                adapters = tuple(full_selection(client, parse_selection(text)) for text in rest.split())
                self._template = replace(self._template, adapters=adapters)
            case "/system":
                self._system = rest.strip()
            case "/reset":
                self.turns = ()
            case "/show":
                say(self._shown())
            case "/help" | "/?":
                say("\n".join(f"  {form:<24} {what}" for form, what in SLASHES))
            case _:
                say(f"unknown command {name}; /help lists them")
        return True

    def answer(self, client: BlockingHotslotClient, line: str, *, timeout_s: float, as_json: bool) -> None:
        """Stream the answer to one more turn; a turn that failed or was interrupted is forgotten."""
        asked = (*self.turns, ChatMessage("user", line))
        template = self._template
        assert isinstance(template.prompt, ChatPrompt)
        system = (ChatMessage("system", self._system),) if self._system else ()
        request = replace(template, prompt=replace(template.prompt, messages=(*system, *asked)))
        try:
            text = stream_answer(client.generate(request, timeout_s=timeout_s), as_json=as_json)
        except KeyboardInterrupt:
            say("(stopped)")
            return
        self.turns = (*asked, ChatMessage("assistant", text))

    def _shown(self) -> str:
        adapters = " ".join(f"{one.reference}={one.weight:g}" for one in self._template.adapters)
        head = [f"adapters: {adapters or 'the defaults of the worker'}", f"system: {self._system or '-'}"]
        return "\n".join([*head, *(f"{turn.role}: {turn.content}" for turn in self.turns)])


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
