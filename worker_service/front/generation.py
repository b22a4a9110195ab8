"""One generation from its request to its last token: check, encode, find adapters, submit, stream.

Nothing goes out before the first token, so everything that can go wrong earlier is a clean error. However it ends,
its sequences are cancelled and its adapters released before the call is over.
"""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing, nullcontext
from dataclasses import dataclass, replace

from hotslot.contract.generation import ChatPrompt, GenerationEvent, GenerationRequest, Started
from hotslot.contract.quotas import QuotaKind
from hotslot.errors import StoreUnavailableError
from hotslot.generation_attributes import operation_of
from hotslot.ids import Digest, TenantId, WorkerId
from hotslot.tracing import span
from shared.call_notes import adapter_label, call_notes
from shared.identity.parties import PARTY
from shared.quotas.rates import Rates
from shared.telemetry import bind_log_context
from worker_service.adapters.policy import AdapterDefaults, Selection
from worker_service.adapters.provider import AdapterProvider, Chosen
from worker_service.adapters.version import AdapterVersion
from worker_service.engine.handle import EngineHandle, SequenceGroup
from worker_service.engine.messages import (
    AdapterUse,
    AdapterWeights,
    SequenceFailed,
    SequenceFinished,
    SequenceId,
    StopRules,
    Submit,
    TokenReady,
)
from worker_service.front.answer import Answer, logprobs_of
from worker_service.front.engine_spans import EngineSpans
from worker_service.front.finishing import finished_of, note_finished
from worker_service.front.prompts import PromptEncoder
from worker_service.front.settling import SettledRequest
from worker_service.front.traced_serving import TracedServing
from worker_service.front.validation import RequestLimits, check, check_prompt_logprobs, check_prompt_tokens


@dataclass(frozen=True, slots=True)
class Identity:
    """Identity of the worker, which every answer tells."""

    worker_id: WorkerId
    base_model: str
    base_model_digest: Digest
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """The use case behind InferenceService.Generate."""

    identity: Identity
    limits: RequestLimits
    encoder: PromptEncoder
    provider: AdapterProvider
    policy: AdapterDefaults
    engine: EngineHandle
    rates: Rates
    engine_spans: EngineSpans | None = None
    """Spans of the engine's work, where traces are recorded."""

    async def settle(
        self, tenant: TenantId, request: GenerationRequest, timeout_s: float | None, *, is_forwarded: bool = False
    ) -> SettledRequest:
        """Accept a request: checked, with the versions that serve it from here on, wherever it is served.

        Raises InvalidRequestError and its kinds (also for adapters that never fit the slots together), the store's
        errors, and CatalogBehindError.
        """
        accepted_s = self.engine.clock()
        selections = self.policy.choose(tenant, check(request, self.limits), base_only=request.base_only)
        request = replace(request, request_id=request.request_id or new_request_id())
        notes = call_notes()
        notes.request_id = request.request_id
        bind_log_context(request_id=request.request_id)
        notes.operation = operation_of(request)
        with span("hotslot.load.resolve") if selections else nullcontext():
            chosen, unconfirmed = await self._versions(tenant, selections, request.min_revision, is_forwarded)
        notes.adapter = adapter_label([item.selection.reference.name for item in chosen])
        notes.references = tuple(str(item.selection.reference) for item in chosen)
        notes.digests = tuple(item.version.digest for item in chosen)
        if chosen:
            notes.stages_s["resolve"] = self.engine.clock() - accepted_s
        deadline_s = accepted_s + timeout_s if timeout_s is not None else None
        return SettledRequest(tenant, request, chosen, accepted_s, deadline_s, unconfirmed)

    async def _versions(
        self, tenant: TenantId, selections: tuple[Selection, ...], min_revision: int, is_forwarded: bool
    ) -> tuple[tuple[Chosen, ...], StoreUnavailableError | None]:
        """The versions now; while the store is away those that were known last, with the reason."""
        provider, tiers = self.provider, self.provider.tiers
        last = [(s, provider.known(tenant, s.reference, is_forwarded=is_forwarded)) for s in selections]
        known = tuple(Chosen(selection, version) for selection, version in last if version is not None)
        is_known = len(known) == len(selections)
        is_here = all(tiers.is_resident(item.version.digest) for item in known)
        # Another worker may hold them, so a store that is slow is not waited for to its end.
        patience_s = provider.references.limits.patience_s if is_known and not is_here else None
        try:
            async with asyncio.timeout(patience_s):
                return await provider.resolve(tenant, selections, min_revision, is_forwarded=is_forwarded), None
        except StoreUnavailableError as exc:
            if not is_known:
                raise
            return known, exc
        except TimeoutError:
            return known, StoreUnavailableError("the store did not say in time what the request's adapters stand for")

    async def generate(self, settled: SettledRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Stream a generation: Started and the first Chunk or Finished together, then the rest.

        Raises InvalidRequestError and its kinds for its prompt, the loader's errors, StoreUnavailableError when its
        versions are not confirmed, SlotsFullError, QueueFullError, TenantQuotaError, and RequestDeadlineError.
        """
        request, prompt, clock, identity = settled.request, settled.request.prompt, self.engine.clock, self.identity
        if settled.unconfirmed is not None:
            raise settled.unconfirmed
        assert isinstance(prompt, str | ChatPrompt | tuple), "a settled request has a prompt"
        async with AsyncExitStack() as stack:
            traced = stack.enter_context(TracedServing(settled, identity.base_model, self.engine_spans))
            with traced.stage("prompt"):
                token_ids = await self.encoder.encode(prompt)
            check_prompt_tokens(prompt, token_ids, self.limits, self.encoder.token_text)
            check_prompt_logprobs(request, len(token_ids))
            call_notes().prompt_tokens = len(token_ids)
            started = Started(
                request.request_id, identity.worker_id, identity.base_model_digest, settled.served, len(token_ids)
            )
            traced.started(started)
            mix = settled.mix
            for item in settled.chosen:
                self.provider.tiers.note(item.version)
            most = len(token_ids) + request.num_choices * self._stop_rules(settled, len(token_ids)).max_tokens
            encoded_s = clock()
            charging = self.rates.charged(settled.tenant, QuotaKind.TOKENS_PER_MINUTE, most)
            charge = await stack.enter_async_context(charging)
            with traced.stage("load") if mix else nullcontext():
                holding = self.provider.tiers.hold([version for version, _ in mix])
                held = await stack.enter_async_context(holding)
            load_s = clock() - encoded_s if mix else 0.0
            group = self.engine.submit(self._drafts(settled, token_ids, mix, held))
            traced.submitted(group, clock())
            answers = self._answers(settled, token_ids)
            try:
                stream = self._stream(settled, token_ids, group, answers, started, load_s, traced)
                async with aclosing(stream) as events:
                    async for event in events:
                        yield event
            finally:
                group.close()
                is_begun = any(answer.first is not None for answer in answers)
                charge.used = is_begun * len(token_ids) + sum(answer.num_tokens for answer in answers)

    def _drafts(
        self,
        settled: SettledRequest,
        token_ids: tuple[int, ...],
        mix: Sequence[tuple[AdapterVersion, float]],
        held: Sequence[AdapterWeights],
    ) -> list[Submit]:
        """One sequence for each choice; they differ in their seeds, and the first one scores the prompt."""
        sampling, logprobs = settled.request.sampling, settled.logprobs
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        return [
            Submit(
                sequence_id=SequenceId(0),
                prompt_token_ids=token_ids,
                adapters=tuple(AdapterUse(w, weight) for w, (_, weight) in zip(held, mix, strict=True)),
                sampling=replace(sampling, seed=choice_seed(seed, choice)),
                stop=self._stop_rules(settled, len(token_ids)),
                arrival_s=settled.accepted_s,
                deadline_s=settled.deadline_s,
                priority=settled.request.priority,
                tenant=settled.tenant,
                logprobs=replace(logprobs, prompt=logprobs.prompt and choice == 0),
                party=PARTY.get(),
            )
            for choice in range(settled.request.num_choices)
        ]

    def _stop_rules(self, settled: SettledRequest, num_prompt_tokens: int) -> StopRules:
        stop, room = settled.request.stop, self.limits.max_sequence_tokens - num_prompt_tokens
        max_tokens = min(stop.most_tokens or room, room)
        ends = {i for c in settled.chosen for i in c.version.manifest.end_token_ids}
        eos = () if stop.ignore_eos else (*self.identity.eos_token_ids, *ends)
        return StopRules(
            max_tokens=max_tokens,
            min_tokens=min(stop.min_tokens, max_tokens),
            stop_token_ids=frozenset((*eos, *stop.token_ids)),
        )

    def _answers(self, settled: SettledRequest, token_ids: tuple[int, ...]) -> list[Answer]:
        rules, request = self._stop_rules(settled, len(token_ids)), settled.request
        return [
            Answer(
                choice,
                self.encoder.decoding,
                token_ids,
                request.stop.strings,
                rules.stop_token_ids,
                rules.min_tokens,
                skip_special_tokens=request.skip_special_tokens,
            )
            for choice in range(request.num_choices)
        ]

    async def _stream(
        self,
        settled: SettledRequest,
        token_ids: tuple[int, ...],
        group: SequenceGroup,
        answers: Sequence[Answer],
        started: Started,
        load_s: float,
        traced: TracedServing,
    ) -> AsyncGenerator[GenerationEvent, None]:
        notes, is_started = call_notes(), False
        unfinished = list(answers)
        while unfinished:
            for index, event in await group.take():
                answer = answers[index]
                match event:
                    case SequenceFailed(_, error):
                        raise error
                    case TokenReady() if answer.ending is None:
                        if answer.add(event):
                            group.end(index)
                    case SequenceFinished() if answer.ending is None:
                        answer.finish(event)
            if settled.logprobs.prompt and not is_started:
                if answers[0].first is None:
                    continue
                started = replace(
                    started, prompt_logprobs=logprobs_of(answers[0].first.prompt_logprobs, self.encoder.decoding.token)
                )
            for answer in tuple(unfinished):
                chunk = answer.take()
                if not is_started and (chunk is not None or answer.ending is not None):
                    is_started = True
                    yield started
                if chunk is not None:
                    yield chunk
                if answer.ending is not None:
                    unfinished.remove(answer)
                    finished = finished_of(answer, settled, len(token_ids), load_s)
                    note_finished(notes, finished)
                    traced.finished(finished)
                    yield finished


def new_request_id() -> str:
    """For a request whose caller gave it none."""
    return "r-" + secrets.token_hex(8)


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one of several choices; the first one's is the request's own."""
    if choice == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed}:{choice}".encode(), digest_size=8).digest(), "little")
