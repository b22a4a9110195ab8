"""The runner: turns the engine's segments into one call of a compiled bucket, and logits into tokens."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from worker_service.engine.attempts import ModelLostError
from worker_service.engine.graph_counts import NO_GRAPHS, GraphCounts
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import AdapterWeights, Computed, SampledToken, Segment, SliceState
from worker_service.model import compiler
from worker_service.model.attention import KvCache
from worker_service.model.buckets import bucket_for
from worker_service.model.decoder_output import DecoderOutput
from worker_service.model.device_plan import DevicePlan
from worker_service.model.device_steps import DeviceSteps
from worker_service.model.host_plan import HostPlan
from worker_service.model.position_tables import PositionTables
from worker_service.model.sampling import sample
from worker_service.model.scoring import score
from worker_service.model.slot_embedding import SlotEmbedding
from worker_service.model.slot_linear import SlotLinear
from worker_service.model.slot_writer import SlotWriter
from worker_service.model.step_programs import StepPrograms
from worker_service.model.step_state import StepState
from worker_service.model.stream_writer import StreamWriter
from worker_service.model.weights import HostAdapter
from worker_service.model.whole_forwards import ForwardKind, WholeForwards


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
        self._graphs_after_warm_up: int | None = None
        self._num_tokens = 0
        self.has_head_slots = any(linear.gates_TS is step.row_gates_RS for linear in slot_linears.values())
        """True if the head computes adapters."""
        self._plan = HostPlan(step, limits, self._token_buckets[-1], self._row_buckets[-1], is_alone=plan is None)
        self.forwards = WholeForwards(programs, self.prepare, self.forward) if programs is not None else None
        """Steps that need not go through the model's forward, where there may be any."""
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
    def recompiles(self) -> int:
        """Graphs compiled since the warm-up ended."""
        if self._graphs_after_warm_up is None:
            return 0
        return compiler.num_graphs() - self._graphs_after_warm_up

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
        self._graphs_after_warm_up = compiler.num_graphs()
        compiler.fail_on_recompile()

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

    def run(self, segments: Sequence[Segment]) -> list[Computed]:
        """Compute one step."""
        if self._device.type == "cpu" and self._beside is None:
            return self._run(segments)
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
        logits_RV = self._logits(segments)[: len(wanted), : self.num_embeddings]
        tokens = iter(sample(logits_RV, wanted) if wanted else [])
        scores = score(segments, self._more_logits, self._row_buckets[-1])
        return [
            _computed(segment, next(tokens) if segment.sampling is not None else None, scored)
            for segment, scored in zip(segments, scores, strict=True)
        ]

    @torch.no_grad()
    def logits(self, segments: Sequence[Segment]) -> torch.Tensor:
        """Logits after the last token of each segment that wants one, `[R, V]`; rows beyond those are padding."""
        return self._logits(segments)

    def _logits(self, segments: Sequence[Segment]) -> torch.Tensor:
        kind = self.prepare(segments)
        logits_RV = self.forwards.run(kind, segments) if self.forwards is not None else None
        return self.forward(kind) if logits_RV is None else logits_RV

    @torch.no_grad()
    def note_forwards(self, kept: Iterable[ForwardKind] | None = None) -> None:
        """Note the calls of steps that have programs; they are made instead of the model's forward from then on.

        With the kinds that an earlier start `kept`, its answers are to be compared after this.
        """
        assert self.forwards is not None
        changing = set(self.addresses().values())  # slots and caches; the rest of the model has its values for good
        fixed = [
            each for each in (*self._model.parameters(), *self._model.buffers()) if each.data_ptr() not in changing
        ]
        tables = PositionTables(self._plan.position_ids_T, fixed, self._limits.max_sequence_tokens)
        self._decoder_output.keeps = False  # what one step leaves would be found in another's calls
        try:
            self.forwards.note(self.lasting(), tables, self._token_buckets, self._limits, self.num_embeddings, kept)
        finally:
            self._decoder_output.keeps = True

    def lasting(self) -> list[torch.Tensor]:
        """Tensors that never move: of the model with its slots and caches, and of a step."""
        model = self._model
        return [*model.parameters(), *model.buffers(), *self._step.tensors(), *self._plan.tensors()]

    def prepare(self, segments: Sequence[Segment]) -> ForwardKind:
        """Write down a step; returns its kind."""
        self._num_tokens = bucket_for(self._token_buckets, sum([len(s.token_ids) for s in segments]))
        last_tokens = self._plan.write(segments, self._num_tokens, self._writer.num_ranks)
        if self.programs is not None:
            self.programs.begin_step(segments)
        return self._point_at(last_tokens)

    def _point_at(self, positions: Sequence[int]) -> ForwardKind:
        num_rows = bucket_for(self._row_buckets, max(len(positions), 1))
        self._plan.point_at(positions, num_rows, self._writer.num_ranks, has_head_slots=self.has_head_slots)
        return ForwardKind(self._num_tokens, num_rows, self._step.with_adapters)

    def forward(self, kind: ForwardKind) -> torch.Tensor:
        """The model's own forward over what the plan says."""
        plan = self._plan
        output = self._model(
            input_ids=plan.input_ids_T[None, : kind.num_tokens],
            position_ids=plan.position_ids_T[None, : kind.num_tokens],
            use_cache=False,
            logits_to_keep=plan.last_tokens_R[: kind.num_rows],
        )
        logits_RV: torch.Tensor = output.logits[0]
        return logits_RV

    def _more_logits(self, positions: Sequence[int]) -> torch.Tensor:
        """Logits at other positions of the step that was just computed, of tokens that the model can read."""
        self._decoder_output.recalling = True
        try:
            return self.forward(self._point_at(positions))[:, : self.num_embeddings]
        finally:
            self._decoder_output.recalling = False


def _computed(segment: Segment, token: SampledToken | None, scores: tuple[SampledToken, ...] | None) -> Computed:
    if scores is None or (token is None and segment.sampling is not None):
        return Computed(is_finite=False)
    return Computed(token, scores)
