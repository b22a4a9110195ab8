"""Steps on a device that runs while the host plans: tokens feed the next step there, and results come one step late.

Shapes: T tokens, R rows of logits, V tokens of the vocabulary.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from transformers import PreTrainedModel

from worker_service.engine.messages import Computed, SampledToken, Segment
from worker_service.model.buckets import bucket_for
from worker_service.model.decoder_output import DecoderOutput
from worker_service.model.device_plan import DevicePlan
from worker_service.model.sampling import Sampler, draw, sampler_of
from worker_service.model.step_graphs import NEEDS_HOST, Capture, GraphKey, StepGraphs
from worker_service.model.step_state import StepState

RESULT_COLUMNS = 2
"""Token, and the bits of the highest logit, which tells whether the row's logits are finite."""
SAMPLERS = tuple(Sampler)


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step whose results are on their way, or were computed with the host's help."""

    rows: Sequence[int | None]
    results_R2: torch.Tensor | None
    done: torch.cuda.Event | None
    computed: list[Computed] | None = None


class DeviceSteps:
    """Launches and collects steps; the next one may be launched before the results of the last are known."""

    def __init__(
        self,
        model: PreTrainedModel,
        decoder_output: DecoderOutput,
        plan: DevicePlan,
        token_buckets: Sequence[int],
        row_buckets: Sequence[int],
        num_embeddings: int,
        slot_ranks: Sequence[int],
        *,
        has_head_slots: bool,
    ) -> None:
        """`slot_ranks` are the ranks that each slot's adapter fills, kept up to date by whoever writes slots."""
        self.model = model
        self._decoder_output = decoder_output
        self.plan = plan
        self.token_buckets, self._row_buckets = tuple(token_buckets), tuple(row_buckets)
        self.num_embeddings = num_embeddings
        self._slot_ranks = slot_ranks
        self._has_head_slots = has_head_slots
        self.graphs = StepGraphs()
        self._device = plan.step.gates_TS.device
        max_rows = self._row_buckets[-1]
        self.results_R2 = torch.zeros(max_rows, RESULT_COLUMNS, dtype=torch.int64, device=self._device)
        """Results of the last step, whose tokens feed the next one."""
        pin = self._device.type == "cuda"
        self._on_host = deque(torch.zeros(max_rows, RESULT_COLUMNS, dtype=torch.int64, pin_memory=pin) for _ in "12")
        self._rows_before: Sequence[int | None] = ()
        self._launched: deque[_Launched] = deque()

    @property
    def step(self) -> StepState:
        """State that the model's modules read."""
        return self.plan.step

    def tensors(self) -> list[torch.Tensor]:
        """Tensors that steps read and write beside the model's own."""
        rows = self.step.varlen
        assert rows is not None
        areas = self.plan.staging.on_device.values()
        return [*areas, self.step.row_gates_RS, rows.counted_R1, self.results_R2]

    @property
    def kinds(self) -> list[GraphKey]:
        """Every kind of step that there is."""
        max_running = self.plan.limits.max_running
        sizes = [(rows, rows, True) for rows in self._row_buckets if self._has_decode_form(rows)]
        sizes += [
            (tokens, bucket_for(self._row_buckets, min(tokens, max_running)), False)
            for tokens in self.token_buckets
            if tokens > 1 or not self._has_decode_form(tokens)
        ]
        return [GraphKey(*size, on, sampler) for size, on, sampler in product(sizes, (False, True), SAMPLERS)]

    def key_of(self, segments: Sequence[Segment]) -> GraphKey:
        """Kind of a step."""
        num_tokens = bucket_for(self.token_buckets, sum(len(segment.token_ids) for segment in segments))
        is_decode = self._has_decode_form(num_tokens) and all(len(segment.token_ids) == 1 for segment in segments)
        most_rows = num_tokens if is_decode else min(num_tokens, self.plan.limits.max_running)
        wanted = [segment for segment in segments if segment.sampling is not None]
        return GraphKey(
            num_tokens,
            bucket_for(self._row_buckets, most_rows),
            is_decode,
            any(segment.gates for segment in segments),
            max(map(sampler_of, wanted), key=SAMPLERS.index, default=Sampler.GREEDY),
        )

    def _has_decode_form(self, num_tokens: int) -> bool:
        rows = self.step.varlen
        assert rows is not None
        return self.step.with_flash and num_tokens < rows.counted_R1.shape[0] and num_tokens in self._row_buckets

    def launch(self, segments: Sequence[Segment], run_on_host: Callable[[Sequence[Segment]], list[Computed]]) -> None:
        """Launch a step after all that was launched before; one that needs the host is computed at once by it."""
        if any(map(needs_host, segments)):
            self.graphs.count_uncaptured(NEEDS_HOST)
            self._rows_before = ()
            self._launched.append(_Launched((), None, None, run_on_host(segments)))
            return
        key = self.key_of(segments)
        rows = self.send(segments, key)
        self.graphs.run(key, self.compute)
        results_R2 = self._on_host[0]
        self._on_host.rotate()
        results_R2.copy_(self.results_R2, non_blocking=True)
        done = None
        if self._device.type == "cuda":
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        self._rows_before = rows
        self._launched.append(_Launched(rows, results_R2, done))

    def collect(self) -> list[Computed]:
        """Results of the first step that was not collected yet."""
        launched = self._launched.popleft()
        if launched.computed is not None:
            return launched.computed
        if launched.done is not None:
            launched.done.synchronize()
        assert launched.results_R2 is not None
        results_R2 = launched.results_R2.numpy()
        is_finite_R = np.isfinite(results_R2[:, 1].astype(np.int32).view(np.float32)).tolist()
        token_ids_R = results_R2[:, 0].tolist()

        def computed(row: int | None) -> Computed:
            if row is None:
                return Computed()
            return Computed(SampledToken(token_ids_R[row])) if is_finite_R[row] else Computed(is_finite=False)

        return [computed(row) for row in launched.rows]

    def send(self, segments: Sequence[Segment], key: GraphKey) -> list[int | None]:
        """Write a step's plan and copy it to the device; returns each segment's row of logits."""
        return self.plan.write(segments, key, self._rows_before, self._slot_ranks, has_head_slots=self._has_head_slots)

    @torch.no_grad()
    def compute(self, key: GraphKey) -> None:
        """Feedback, layers, head and sampler, on tensors that never move: all that a captured step launches."""
        step, areas, num_rows = self.step, self.plan.staging.on_device, key.num_rows
        fed_T = areas["fed"][: key.num_tokens]
        chosen_T = self.results_R2[:, 0][fed_T.clamp(min=0)]
        input_ids_T = torch.where(fed_T >= 0, chosen_T, areas["input_ids"][: key.num_tokens])
        last_tokens_R = areas["last_tokens"][:num_rows]
        step.is_decode, step.with_adapters = key.is_decode, key.with_adapters
        if key.with_adapters:
            step.row_gates_RS[:num_rows].copy_(step.gates_TS[last_tokens_R])
        self._decoder_output.keeps = False
        try:
            output = self.model(
                input_ids=input_ids_T[None],
                position_ids=areas["positions"][None, : key.num_tokens],
                use_cache=False,
                logits_to_keep=last_tokens_R,
            )
        finally:
            self._decoder_output.keeps = True
        logits_RV = output.logits[0][:, : self.num_embeddings].float()
        likeliest_R = logits_RV.argmax(-1)
        # To argmax a NaN is the largest, so what it found tells of all logits of its row.
        highest_R = logits_RV.gather(-1, likeliest_R[:, None])[:, 0]
        tokens_R = likeliest_R
        if key.sampler is not Sampler.GREEDY:
            counts_R3, factors_R3 = areas["counts"][:num_rows], areas["factors"][:num_rows]
            drawn_R = draw(logits_RV, counts_R3, factors_R3, truncates=key.sampler is Sampler.TRUNCATED)
            tokens_R = torch.where(areas["is_greedy"][:num_rows], likeliest_R, drawn_R)
        self.results_R2[:num_rows, 0].copy_(tokens_R)
        self.results_R2[:num_rows, 1].copy_(highest_R.view(torch.int32))

    def capture(self, capture: Capture, on_stage: Callable[[str], None] = lambda _: None) -> None:
        """Capture every kind of step; each has run before, so that nothing is compiled meanwhile."""

        def computing(key: GraphKey) -> None:
            on_stage(f"capture {key}")
            self.compute(key)

        self.graphs.capture(self.kinds, capture, computing)


def needs_host(segment: Segment) -> bool:
    """True if a segment's results are computed with values that only the host has."""
    options = segment.sampling
    if segment.scoring is not None:
        return True
    if options is None:
        return False
    changes_logits = bool(options.logit_bias) or options.counts_tokens or bool(segment.banned_token_ids)
    return changes_logits or segment.logprobs.enabled
