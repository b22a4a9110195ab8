"""Options of an answer, which generate, run and chat share, and the request that they make."""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from hotslot.cli import options
from hotslot.cli.options import (
    JsonOption,
    StoreOption,
    TenantOption,
    WorkerOption,
    full_selection,
    open_client,
    parse_selection,
)
from hotslot.cli.prompts import bound_of, chat_prompt
from hotslot.clients.blocking import BlockingHotslotClient
from hotslot.contract.generation import (
    DEFAULT_MAX_TOKENS,
    AdapterSelection,
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    Logprobs,
    Sampling,
    Stop,
)
from hotslot.errors import FieldViolation, InvalidRequestError

Values = list[str] | None


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """Options in the order in which the help lists them."""

    adapter: Annotated[
        Values,
        typer.Option("--adapter", "-a", metavar="REF[=WEIGHT]", help="An adapter; repeatable, added up by weight."),
    ] = None
    base_only: Annotated[
        bool, typer.Option("--base-only", help="Answer with the base model, whatever the default adapters are.")
    ] = False
    system: Annotated[str, typer.Option("--system", help="The system message of the chat.")] = ""
    tools: Annotated[
        Path | None, typer.Option("--tools", metavar="FILE", help="JSON list of the tools that the chat template gets.")
    ] = None
    template_arg: Annotated[
        Values,
        typer.Option("--template-arg", metavar="NAME=JSON", help="A variable of the chat template; repeatable."),
    ] = None
    template: Annotated[str, typer.Option("--template", metavar="NAME", help="One of the model's chat templates.")] = ""
    allow_special_tokens: Annotated[
        bool, typer.Option("--allow-special-tokens", help="Read special tokens in messages as such, not as text.")
    ] = False
    keep_special_tokens: Annotated[
        bool, typer.Option("--keep-special-tokens", help="Show special tokens in the answer.")
    ] = False
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            "-n",
            help=f"At most this many tokens; {DEFAULT_MAX_TOKENS} unless given, 0: as many as fit.",
        ),
    ] = None
    min_tokens: Annotated[int, typer.Option("--min-tokens", help="At least this many tokens.")] = 0
    stop: Annotated[Values, typer.Option("--stop", metavar="TEXT", help="End the answer before TEXT; repeatable.")] = (
        None
    )
    stop_token: Annotated[
        list[int] | None, typer.Option("--stop-token", metavar="ID", help="End the answer at a token; repeatable.")
    ] = None
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after the model's own end.")] = False
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="Temperature of sampling; 0: greedy.")] = 0.0
    top_p: Annotated[
        float, typer.Option("--top-p", help="Draw from the likeliest tokens with this much probability; 1: no limit.")
    ] = 1.0
    top_k: Annotated[int, typer.Option("--top-k", help="Draw from the K most likely tokens; 0: no limit.")] = 0
    min_p: Annotated[
        float,
        typer.Option("--min-p", help="Draw from tokens at least this likely, against the likeliest; 0: no limit."),
    ] = 0.0
    seed: Annotated[int | None, typer.Option("--seed", help="The same seed gives the same answer.")] = None
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", help="Divisor of tokens that were there; 1: none.")
    ] = 1.0
    presence_penalty: Annotated[
        float, typer.Option("--presence-penalty", help="Penalty of tokens that the answer has; 0: none.")
    ] = 0.0
    frequency_penalty: Annotated[
        float, typer.Option("--frequency-penalty", help="Penalty of tokens for each time that the answer has them.")
    ] = 0.0
    logit_bias: Annotated[
        Values, typer.Option("--logit-bias", metavar="ID=BIAS", help="Added to the logits of a token; repeatable.")
    ] = None
    logprobs: Annotated[
        int | None, typer.Option("--logprobs", metavar="N", help="Log-probabilities, with N alternatives.")
    ] = None
    prompt_logprobs: Annotated[
        bool, typer.Option("--prompt-logprobs", help="Log-probabilities of the prompt's tokens too, with --json.")
    ] = False
    num_choices: Annotated[
        int, typer.Option("--num-choices", min=1, metavar="N", help="N answers, one below the other.")
    ] = 1
    priority: Annotated[int, typer.Option("--priority", help="Requests of a higher priority start first.")] = 0
    request_id: Annotated[str, typer.Option("--request-id", metavar="ID", help="Id of the request in logs.")] = ""
    min_revision: Annotated[
        int,
        typer.Option(
            "--min-revision", metavar="N", help="Be served by what the write that returned revision N wrote, or later."
        ),
    ] = 0
    timeout_s: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Deadline of the request.")] = 600.0
    route: Annotated[
        bool, typer.Option("--route/--direct", help="Ask the store for the best worker, or call --worker.")
    ] = False
    store: StoreOption = options.STORE
    worker: WorkerOption = options.WORKER
    tenant: TenantOption = options.TENANT
    as_json: JsonOption = False

    def selections(self) -> tuple[AdapterSelection, ...]:
        """The adapters; raises InvalidRequestError."""
        return tuple(parse_selection(text) for text in self.adapter or ())

    def client(self) -> BlockingHotslotClient:
        """The client of the deployment that the options name; use it with `with`."""
        return open_client(store=self.store, worker=self.worker, tenant=self.tenant, route=self.route)

    def prompt(self, *turns: ChatMessage, prefill: str = "") -> ChatPrompt:
        """A conversation with these turns behind the system message."""
        first = (ChatMessage("system", self.system),) if self.system else ()
        return chat_prompt(
            (*first, *turns),
            prefill=prefill,
            tools=self.tools,
            template_arguments=self.template_arg or (),
            allow_special_tokens=self.allow_special_tokens,
            template=self.template,
        )

    def request(
        self, client: BlockingHotslotClient, prompt: ChatPrompt | str, more: Sequence[AdapterSelection] = ()
    ) -> GenerationRequest:
        """The request for an answer, with `more` adapters in front; raises InvalidRequestError."""
        logprobs = None
        if self.logprobs is not None or self.prompt_logprobs:
            logprobs = Logprobs(self.logprobs or 0, prompt=self.prompt_logprobs, enabled=self.logprobs is not None)
        return GenerationRequest(
            prompt=prompt,
            adapters=tuple(full_selection(client, one) for one in (*more, *self.selections())),
            base_only=self.base_only,
            sampling=Sampling(
                **{one.name: getattr(self, one.name) for one in fields(Sampling) if one.name != "logit_bias"},
                logit_bias=dict(_token_bias(text) for text in self.logit_bias or ()),
            ),
            stop=Stop(
                max_tokens=bound_of(self.max_tokens),
                min_tokens=self.min_tokens,
                strings=tuple(self.stop or ()),
                token_ids=tuple(self.stop_token or ()),
                ignore_eos=self.ignore_eos,
            ),
            logprobs=logprobs,
            request_id=self.request_id,
            priority=self.priority,
            num_choices=self.num_choices,
            skip_special_tokens=not self.keep_special_tokens,
            min_revision=self.min_revision,
        )


def with_answer_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of an answer in place of its parameter `answer`."""
    hints = get_type_hints(AnswerOptions, include_extras=True)
    known = list(fields(AnswerOptions))
    added = [inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default,
                               annotation=hints[field.name]) for field in known]  # fmt: skip
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "answer"]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        answer = AnswerOptions(**{field.name: values.pop(field.name) for field in known})
        command(**values, answer=answer)

    run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *added)}
    del run.__wrapped__
    return run


def _token_bias(text: str) -> tuple[int, float]:
    token, equals, bias = text.partition("=")
    try:
        if equals:
            return int(token), float(bias)
    except ValueError:
        pass
    raise InvalidRequestError([FieldViolation("--logit-bias", f"found {text[:80]!r}, expected ID=BIAS: 42=-1.5")])
