"""One generation from its request to its last token: check, encode, find adapters, submit, stream.

Nothing goes out before the first token, so everything that can go wrong earlier is a clean error. However it ends,
its sequences are cancelled and its adapters released before the call is over.
"""

import hashlib
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from hotslot.ids import Digest, TenantId, WorkerId
from shared.telemetry import bind_log_context
from worker_service.adapters.policy import AdapterPolicy
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
from worker_service.front.answer import Answer
from worker_service.front.prompts import PromptEncoder
from worker_service.front.requests import (
    CheckedRequest,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Served,
    Started,
    Timings,
)
from worker_service.front.validation import RequestLimits, check, check_prompt_logprobs, check_prompt_tokens

_UNSET = SequenceId(0)


@dataclass(frozen=True, slots=True)
class Identity:
    """Identity of the worker, which every answer tells."""

    worker_id: WorkerId
    base_model_digest: Digest
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A request on its way through, with what is known before its adapters are loaded."""

    checked: CheckedRequest
    token_ids: tuple[int, ...]
    chosen: tuple[Chosen, ...]
    accepted_s: float
    deadline_s: float | None


@dataclass(frozen=True, slots=True)
class Generation:
    """The use case behind InferenceService.Generate."""

    identity: Identity
    limits: RequestLimits
    encoder: PromptEncoder
    provider: AdapterProvider
    policy: AdapterPolicy
    engine: EngineHandle

    async def generate(
        self, tenant: TenantId, request: GenerationRequest, timeout_s: float | None
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Stream a generation: Started and the first Chunk or Finished together, then the rest.

        Raises InvalidRequestError and its kinds (also for adapters that never fit the slots together), the store's and
        the loader's errors, SlotsFullError, QueueFullError, and RequestDeadlineError.
        """
        clock = self.engine.clock
        accepted_s = clock()
        deadline_s = accepted_s + timeout_s if timeout_s is not None else None
        checked = check(request, self.limits)
        request_id = request.request_id or new_request_id()
        bind_log_context(request_id=request_id)
        token_ids = await self.encoder.encode(checked.prompt)
        check_prompt_tokens(checked.prompt, token_ids, self.limits, self.encoder.token_text)
        check_prompt_logprobs(request, len(token_ids))
        selections = self.policy.choose(tenant, checked.selections, base_only=request.base_only)
        chosen = await self.provider.resolve(tenant, selections)
        accepted = _Accepted(checked, token_ids, chosen, accepted_s, deadline_s)
        started = Started(
            request_id,
            self.identity.worker_id,
            self.identity.base_model_digest,
            tuple(Served(c.selection.reference, c.version.digest, c.selection.weight) for c in chosen),
            len(token_ids),
        )
        mix = _mix(chosen)
        resolved_s = clock()
        async with self.provider.tiers.hold([version for version, _ in mix]) as held:
            load_s = clock() - resolved_s if mix else 0.0
            group = self.engine.submit(self._drafts(tenant, accepted, mix, held))
            try:
                async with aclosing(self._stream(accepted, group, started, load_s)) as events:
                    async for event in events:
                        yield event
            finally:
                group.close()

    def _drafts(
        self,
        tenant: TenantId,
        accepted: _Accepted,
        mix: Sequence[tuple[AdapterVersion, float]],
        held: Sequence[AdapterWeights],
    ) -> list[Submit]:
        """One sequence for each choice; they differ in their seeds, and the first one scores the prompt."""
        request = accepted.checked.request
        seed = secrets.randbits(63) if request.seed is None else request.seed
        return [
            Submit(
                sequence_id=_UNSET,
                prompt_token_ids=accepted.token_ids,
                adapters=tuple(AdapterUse(w, weight) for w, (_, weight) in zip(held, mix, strict=True)),
                sampling=replace(request.sampling, seed=choice_seed(seed, choice)),
                stop=self._stop_rules(accepted),
                arrival_s=accepted.accepted_s,
                deadline_s=accepted.deadline_s,
                priority=request.priority,
                tenant=tenant,
                prompt_logprobs=request.prompt_logprobs and choice == 0,
            )
            for choice in range(request.num_choices)
        ]

    def _stop_rules(self, accepted: _Accepted) -> StopRules:
        request = accepted.checked.request
        room = self.limits.max_sequence_tokens - len(accepted.token_ids)
        max_tokens = min(request.most_tokens or room, room)
        ends = {i for c in accepted.chosen for i in c.version.manifest.end_token_ids}
        eos = () if request.ignore_eos else (*self.identity.eos_token_ids, *ends)
        return StopRules(
            max_tokens=max_tokens,
            min_tokens=min(request.min_tokens, max_tokens),
            stop_token_ids=frozenset((*eos, *request.stop_token_ids)),
        )

    async def _stream(
        self, accepted: _Accepted, group: SequenceGroup, started: Started, load_s: float
    ) -> AsyncGenerator[GenerationEvent, None]:
        rules = self._stop_rules(accepted)
        request = accepted.checked.request
        answers = [
            Answer(
                choice,
                self.encoder.decoding,
                accepted.token_ids,
                request.stop_strings,
                rules.stop_token_ids,
                rules.min_tokens,
                skip_special_tokens=request.skip_special_tokens,
            )
            for choice in range(request.num_choices)
        ]
        is_started = False
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
            if request.prompt_logprobs and not is_started:
                if answers[0].first is None:
                    continue
                started = replace(started, prompt_logprobs=answers[0].first.prompt_logprobs)
            for answer in tuple(unfinished):
                chunk = answer.take()
                if not is_started and (chunk is not None or answer.ending is not None):
                    is_started = True
                    yield started
                if chunk is not None:
                    yield chunk
                if answer.ending is not None:
                    unfinished.remove(answer)
                    yield _finished(answer, accepted, load_s)


def new_request_id() -> str:
    """For a request whose caller gave it none."""
    return "r-" + secrets.token_hex(8)


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one of several choices; the first one's is the request's own."""
    if choice == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed}:{choice}".encode(), digest_size=8).digest(), "little")


def _mix(chosen: Sequence[Chosen]) -> list[tuple[AdapterVersion, float]]:
    """Versions with their weights; references to the same version add up, as the adapters themselves would."""
    mix: dict[Digest, tuple[AdapterVersion, float]] = {}
    for item in chosen:
        _, weight = mix.get(item.version.digest, (item.version, 0.0))
        mix[item.version.digest] = (item.version, weight + item.selection.weight)
    return list(mix.values())


def _finished(answer: Answer, accepted: _Accepted, load_s: float) -> Finished:
    ending, first = answer.ending, answer.first
    assert ending is not None
    assert first is not None
    return Finished(
        choice=answer.choice,
        reason=ending.reason,
        stop_string=ending.stop_string,
        stop_token_id=ending.stop_token_id,
        prompt_tokens=len(accepted.token_ids),
        completion_tokens=answer.num_tokens,
        cached_tokens=first.cached_tokens,
        timings=Timings(
            queue_s=first.started_s - accepted.accepted_s,
            adapter_load_s=load_s,
            time_to_first_token_s=first.time_s - accepted.accepted_s,
            total_s=answer.last_s - accepted.accepted_s,
        ),
    )
