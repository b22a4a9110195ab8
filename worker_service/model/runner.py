"""The runner: turns the engine's segments into one call of a compiled bucket, and logits into tokens."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from worker_service.engine.attempts import ModelLostError
from worker_service.engine.graph_counts import NO_GRAPHS, GraphCounts
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import AdapterWeights, Computed, SampledToken, Segment, SliceState
from worker_service.model.attention import KvCache
from worker_service.model.buckets import bucket_for
from worker_service.model.cuda.active_columns import GatedTokens
from worker_service.model.decoder_output import DecoderOutput
from worker_service.model.device_plan import DevicePlan
from worker_service.model.device_steps import DeviceSteps
from worker_service.model.sampling import sample
from worker_service.model.scoring import score
from worker_service.model.slot_embedding import SlotEmbedding
from worker_service.model.slot_linear import SlotLinear
from worker_service.model.slot_writer import SlotWriter
from worker_service.model.step_programs import StepPrograms
from worker_service.model.step_state import StepState
from worker_service.model.stream_writer import StreamWriter
from worker_service.model.weights import HostAdapter


class TorchRunner:
    """A causal language model with slots and a paged cache; a ModelRunner.

    `model` is a transformers model whose linears and attention modules share `step`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        step: StepState,
        slot_linears: dict[str, SlotLinear],
        slot_embeddings: dict[str, SlotEmbedding],
        writer: SlotWriter,
        caches: Sequence[KvCache],
        limits: EngineLimits,
        token_buckets: Sequence[int],
        device: torch.device,
        num_embeddings: int,
        programs: StepPrograms | None,
        beside: StreamWriter | None = None,
        plan: DevicePlan | None = None,
    ) -> None:
        """`num_embeddings` are the rows of the embedding: the tokens that the model can read.

        `programs` are those of compiled layers, where there may be any. `beside` copies adapters beside the steps,
        where the device has streams; elsewhere `writer` does it between them. With a `plan`, which has `step`, the
        engine may be one step ahead.
        """
        assert token_buckets[-1] >= limits.max_step_tokens
        self._model = model
        self._step = step
        self.slot_linears = slot_linears
        self.slot_embeddings = slot_embeddings
        self._writer = writer
        self._beside = beside
        self._caches = tuple(caches)
        self._limits = limits
        self._token_buckets = tuple(sorted(token_buckets))
        self._row_buckets = tuple(
            sorted({bucket_for(self._token_buckets, n) for n in range(1, limits.max_running + 1)})
        )
        self._device = device
        self.num_embeddings = num_embeddings
        self.programs = programs
        max_tokens = self._token_buckets[-1]
        self._input_ids_T = torch.zeros(max_tokens, dtype=torch.int64, device=device)
        self._position_ids_T = torch.zeros(max_tokens, dtype=torch.int64, device=device)
        self._last_tokens_R = torch.zeros(self._row_buckets[-1], dtype=torch.int64, device=device)
        self._spare_position = limits.num_blocks * limits.block_tokens
        self._graphs_after_warm_up: int | None = None
        self._num_tokens = 0
        self._spans: list[GatedTokens] = []
        self._launched: deque[list[Computed]] = deque()
        self._decoder_output = DecoderOutput(model)
        self.device_steps: DeviceSteps | None = None
        """Steps of which the next may be launched before the last is known; None where all are computed at once."""
        if plan is not None:
            self.device_steps = DeviceSteps(
                model,
                self._decoder_output,
                plan,
                self._token_buckets,
                self._row_buckets,
                num_embeddings,
                writer.num_ranks,
                has_head_slots=self.has_head_slots,
            )

    @property
    def token_buckets(self) -> tuple[int, ...]:
        """Numbers of tokens for which the model is compiled."""
        return self._token_buckets

    @property
    def row_buckets(self) -> tuple[int, ...]:
        """Numbers of rows for which the head is compiled."""
        return self._row_buckets

    @property
    def decode_buckets(self) -> tuple[int, ...]:
        """Numbers of tokens for which there is a form for steps with one token in each row."""
        return self._row_buckets if self._step.with_flash else ()

    @property
    def has_head_slots(self) -> bool:
        """True if the head computes adapters."""
        return any(linear.gates_TS is self._step.row_gates_RS for linear in self.slot_linears.values())

    @property
    def recompiles(self) -> int:
        """Graphs compiled since the warm-up ended."""
        if self._graphs_after_warm_up is None:
            return 0
        return _unique_graphs() - self._graphs_after_warm_up

    def addresses(self) -> dict[str, int]:
        """Address of every slot, gate and cache tensor; a compiled graph holds these, so they never change."""
        step = self._step
        tensors = {"gates": step.gates_TS, "row_gates": step.row_gates_RS, "cache_positions": step.cache_positions_T}
        modules: dict[str, SlotLinear | SlotEmbedding] = {**self.slot_embeddings, **self.slot_linears}
        for path, module in modules.items():
            tensors |= {f"{path}.a": module.a_CI, f"{path}.b": module.b_CO}
            tensors |= {f"{path}.scale": module.scale_S, f"{path}.one": module.one_SK}
        for index, cache in enumerate(self._caches):
            tensors |= {f"cache.{index}.k": cache.k_NGD, f"cache.{index}.v": cache.v_NGD}
        return {name: tensor.data_ptr() for name, tensor in tensors.items()}

    def arm(self) -> None:
        """End the warm-up: from now on a recompilation is an error, not a pause."""
        self._graphs_after_warm_up = _unique_graphs()
        torch.compiler.set_stance("fail_on_recompile")

    def write_slots(self, slots: Sequence[int], weights: AdapterWeights) -> Iterator[SliceState]:
        """Copy an adapter into slots, slice by slice; modules that it does not target are turned off."""
        assert isinstance(weights, HostAdapter)
        return (self._beside or self._writer).write(slots, weights)

    @property
    def graphs(self) -> GraphCounts:
        """Captured steps, and what ran without."""
        return self.device_steps.graphs.counts if self.device_steps is not None else NO_GRAPHS

    @property
    def depth(self) -> int:
        """1 on a device that runs while the host plans; on CPU no step is launched before the last one is known."""
        return 1 if self.device_steps is not None else 0

    def launch(self, segments: Sequence[Segment]) -> None:
        """Begin to compute a step; on CPU its results are there at once."""
        if self.device_steps is None:
            self._launched.append(self.run(segments))
        else:
            with self._launching(segments):
                self.device_steps.launch(segments, self._run)

    def collect(self) -> list[Computed]:
        """Results of the first step that was not collected yet."""
        if self.device_steps is None:
            return self._launched.popleft()
        with self._launching():
            return self.device_steps.collect()

    @torch.no_grad()
    def run(self, segments: Sequence[Segment]) -> list[Computed]:
        """Compute one step."""
        with self._launching(segments):
            return self._run(segments)

    @contextmanager
    def _launching(self, segments: Sequence[Segment] = ()) -> Iterator[None]:
        """Note which slots the device reads from now on, and tell errors after which it computes nothing any more."""
        try:
            yield
        except torch.AcceleratorError as exc:
            try:
                torch.accelerator.synchronize(self._device)
            except torch.AcceleratorError:
                # It says so to every call from then on: only a new process helps.
                raise ModelLostError(f"{self._device} computes nothing any more: {exc}") from exc
            raise
        finally:
            # A launch that failed may have begun to read.
            if self._beside is not None and segments:
                self._beside.reads.launched({slot for segment in segments for slot, _ in segment.gates})

    @torch.no_grad()
    def _run(self, segments: Sequence[Segment]) -> list[Computed]:
        wanted = [segment for segment in segments if segment.sampling is not None]
        # A head may have more rows than the embedding; what it says of those could not be read back.
        logits_RV = self.logits(segments)[: len(wanted), : self.num_embeddings]
        tokens = iter(sample(logits_RV, wanted) if wanted else [])
        scores = score(segments, self._more_logits, self._row_buckets[-1])
        return [
            _computed(segment, next(tokens) if segment.sampling is not None else None, scored)
            for segment, scored in zip(segments, scores, strict=True)
        ]

    @torch.no_grad()
    def logits(self, segments: Sequence[Segment]) -> torch.Tensor:
        """Logits after the last token of each segment that wants one, `[R, V]`; rows beyond those are padding."""
        self._num_tokens = bucket_for(self._token_buckets, sum(len(s.token_ids) for s in segments))
        last_tokens = self._fill(segments, self._num_tokens)
        if self.programs is not None:
            self.programs.begin_step(segments)
        return self._logits_at(last_tokens)

    def _more_logits(self, positions: Sequence[int]) -> torch.Tensor:
        """Logits at other positions of the step that was just computed, of tokens that the model can read."""
        self._decoder_output.recalling = True
        try:
            return self._logits_at(positions)[:, : self.num_embeddings]
        finally:
            self._decoder_output.recalling = False

    def _logits_at(self, positions: Sequence[int]) -> torch.Tensor:
        num_tokens, num_rows = self._num_tokens, bucket_for(self._row_buckets, max(len(positions), 1))
        # Padding rows read the first token: what an earlier step left there may lie beyond this one's tokens.
        padded = [*positions, *[0] * (num_rows - len(positions))]
        self._last_tokens_R[:num_rows] = torch.tensor(padded, dtype=torch.int64)
        if self._step.with_adapters:
            self._step.row_gates_RS[:num_rows].copy_(self._step.gates_TS[self._last_tokens_R[:num_rows]])
            if self._step.row_columns is not None and self.has_head_slots:
                rows = [GatedTokens(row, 1, self._slots_at(position)) for row, position in enumerate(positions)]
                self._step.row_columns.fill(rows, num_rows, self._limits.slot_rank, self._writer.num_ranks)
        output = self._model(
            input_ids=self._input_ids_T[None, :num_tokens],
            position_ids=self._position_ids_T[None, :num_tokens],
            use_cache=False,
            logits_to_keep=self._last_tokens_R[:num_rows],
        )
        logits_RV: torch.Tensor = output.logits[0]
        return logits_RV

    def _fill(self, segments: Sequence[Segment], num_tokens: int) -> list[int]:
        """Write the step's tensors; returns the last token of each segment that wants logits."""
        step, block_tokens = self._step, self._limits.block_tokens
        input_ids: list[int] = []
        position_ids: list[int] = []
        cache_positions: list[int] = []
        rows: list[tuple[int, int, int, int]] = []
        last_tokens: list[int] = []
        step.gates_TS[:num_tokens].zero_()
        for row, segment in enumerate(segments):
            first, count = len(input_ids), len(segment.token_ids)
            positions = range(segment.start, segment.start + count)
            table = segment.block_table
            input_ids.extend(segment.token_ids)
            position_ids.extend(positions)
            cache_positions.extend(table[p // block_tokens] * block_tokens + p % block_tokens for p in positions)
            for slot, weight in segment.gates:
                step.gates_TS[first : first + count, slot] = weight
            contiguous = all(b == a + 1 for a, b in itertools.pairwise(table))
            rows.append((first, count, segment.start + count, table[0] * block_tokens if contiguous else -1))
            step.block_tables_RB[row, : len(table)] = torch.tensor(table, dtype=torch.int32)
            if segment.sampling is not None:
                last_tokens.append(first + count - 1)
        padding = num_tokens - len(input_ids)
        input_ids.extend([0] * padding)
        position_ids.extend([0] * padding)
        cache_positions.extend([self._spare_position] * padding)
        self._input_ids_T[:num_tokens] = torch.tensor(input_ids)
        self._position_ids_T[:num_tokens] = torch.tensor(position_ids)
        step.cache_positions_T[:num_tokens] = torch.tensor(cache_positions)
        step.describe(rows, num_tokens)
        step.with_adapters = any(segment.gates for segment in segments)
        if step.columns is not None and step.with_adapters:
            slots = [[slot for slot, _ in segment.gates] for segment in segments]
            self._spans = [GatedTokens(row[0], row[1], on) for row, on in zip(rows, slots, strict=True)]
            step.columns.fill(self._spans, num_tokens, self._limits.slot_rank, self._writer.num_ranks)
        return last_tokens

    def _slots_at(self, position: int) -> Sequence[int]:
        """Slots that are on for a token of the step."""
        return next(span.slots for span in self._spans if span.first <= position < span.first + span.count)


def _computed(segment: Segment, token: SampledToken | None, scores: tuple[SampledToken, ...] | None) -> Computed:
    if scores is None or (token is None and segment.sampling is not None):
        return Computed(is_finite=False)
    return Computed(token, scores)


def _unique_graphs() -> int:
    return int(counters["stats"]["unique_graphs"])
