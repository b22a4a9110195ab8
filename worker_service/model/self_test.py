"""The start-up self-test: this worker's batched, compiled answers against exact ones, by plain transformers' rounding.

Dozens of architectures trace cleanly and answer wrong when their attention is replaced, so nothing but a comparison
tells which ones can be served. How far rounding alone takes an answer depends on model, element type and processor. So
the unmodified model answers the same prompts twice, in its element type and in a wider one, and the worker's answers
may be a few times as far from the wider ones as plain transformers' own.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import structlog
import torch
from transformers import PreTrainedModel

from hotslot.contract.generation import Sampling
from hotslot.errors import ModelNotServableError
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import Segment
from worker_service.model.layer_outputs import LayerOutputs, first_difference, recording, relative_error
from worker_service.model.runner import TorchRunner
from worker_service.model.self_test_plan import Piece, Plan, plan_self_test
from worker_service.model.wide_arithmetic import WideArithmetic

log = structlog.get_logger(__name__)

WIDER = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}
MAX_TIMES_PLAIN = 4.0
"""The worker's error over plain transformers'. Measured: sound models 0.4 to 1.8, wrong ones 7.7 and more."""
OUTLIERS = 6
"""One of so many logits does not count, the worst first: where two experts are nearly even, rounding decides which one
a token gets, and that token's answer is far off. A wrong model is wrong in more places."""
LEAST_BOUND = {torch.float32: 1e-3, torch.bfloat16: 1e-2, torch.float16: 1.25e-3}
"""Relative error that always passes: another order of additions, where plain transformers hardly round at all."""
USUAL_ERROR = {torch.float32: 0.0, torch.bfloat16: 0.03, torch.float16: 0.005}
"""Plain transformers' error where it cannot be measured."""


@dataclass(frozen=True)
class Expectation:
    """Answers of the unmodified model. P are the plan's pieces, R its rows, T tokens."""

    plan: Plan
    prompts: tuple[tuple[int, ...], ...]
    """Rows with their answers."""
    logits_PV: torch.Tensor
    """After the last token of each piece, in wide arithmetic."""
    plain_error: float
    """Error of plain transformers' logits, as `typical_error` has it."""
    layer_outputs: LayerOutputs
    """In wide arithmetic."""
    plain_layer_errors: dict[str, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Relative errors of one set of logits, and the logits."""

    found: float
    plain: float
    bound: float
    logits_PV: torch.Tensor

    @property
    def passes(self) -> bool:
        """False also for a NaN."""
        return self.found <= self.bound


@torch.no_grad()
def expect(model: PreTrainedModel, limits: EngineLimits, dtype: torch.dtype) -> Expectation:
    """Run the unmodified model on all prompts, plainly and in wide arithmetic."""
    plan = plan_self_test(limits)
    prompts = _prompts(model, plan)
    plain_PV, plain_outputs = _answers(model, prompts, plan, None)
    try:
        wide_PV, wide_outputs = _answers(model, prompts, plan, WIDER[dtype])
    except RuntimeError as exc:
        log.warning("no_wide_arithmetic", model_type=model.config.model_type, why=str(exc))
        usual = dict.fromkeys(plain_outputs, USUAL_ERROR[dtype])
        return Expectation(plan, prompts, plain_PV, USUAL_ERROR[dtype], plain_outputs, usual)
    layer_errors = {path: relative_error(plain_outputs[path], wide_TX) for path, wide_TX in wide_outputs.items()}
    return Expectation(plan, prompts, wide_PV, typical_error(plain_PV, wide_PV), wide_outputs, layer_errors)


def check(
    model: PreTrainedModel, runner: TorchRunner, limits: EngineLimits, expectation: Expectation, dtype: torch.dtype
) -> Comparison:
    """Run the same prompts in the plan's steps, and compare all logits.

    Raises ModelNotServableError past the bound, which names the part of the model that is the first to differ.
    """
    steps = _steps(limits, expectation.plan, expectation.prompts)
    found_PV = torch.cat([runner.logits(segments)[: len(segments)] for segments in steps])
    error, plain_error = typical_error(found_PV.to(WIDER[dtype]), expectation.logits_PV), expectation.plain_error
    comparison = Comparison(error, plain_error, _bound(plain_error, dtype), found_PV)
    if not comparison.passes:
        raise _differs(model, comparison, dtype, _first_difference(model, runner, steps, expectation, dtype))
    return comparison


def answers(model: PreTrainedModel, runner: TorchRunner, limits: EngineLimits) -> torch.Tensor:
    """Logits of the worker after each of the plan's pieces, `[P, V]`, as `check` compares them."""
    plan = plan_self_test(limits)
    steps = _steps(limits, plan, _prompts(model, plan))
    return torch.cat([runner.logits(segments)[: len(segments)] for segments in steps])


def _prompts(model: PreTrainedModel, plan: Plan) -> tuple[tuple[int, ...], ...]:
    """Rows with their answers, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    vocab = model.config.get_text_config().vocab_size
    return tuple(tuple(torch.randint(vocab, (length,), generator=generator).tolist()) for length in plan.lengths)


def typical_error(found_PV: torch.Tensor, expected_PV: torch.Tensor) -> float:
    """|found - expected| / |expected| of each row, their root mean square without the outliers; NaN where one is."""
    found_PV, expected_PV = found_PV.double(), expected_PV.double()
    errors_P = (found_PV - expected_PV).norm(dim=1) / expected_PV.norm(dim=1).clamp_min(torch.finfo(torch.double).tiny)
    if errors_P.isnan().any():
        return math.nan
    kept_P = errors_P.sort().values[: len(errors_P) - len(errors_P) // OUTLIERS]
    return float(kept_P.square().mean().sqrt())


def _bound(plain_error: float, dtype: torch.dtype) -> float:
    return max(LEAST_BOUND[dtype], MAX_TIMES_PLAIN * plain_error)


def _answers(
    model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], plan: Plan, wide: torch.dtype | None
) -> tuple[torch.Tensor, LayerOutputs]:
    """Logits and layers' outputs by the plan's order, from one batch.

    Rows are filled up on the right, where a causal model's earlier tokens do not look. Wide arithmetic widens every
    weight in each forward, so it takes one for all rows.
    """
    device = next(model.parameters()).device
    length = max(map(len, prompts))
    rows = [[*prompt, *[0] * (length - len(prompt))] for prompt in prompts]
    with recording(model) as recorded, WideArithmetic(wide) if wide is not None else nullcontext():
        logits_RTV = model(input_ids=torch.tensor(rows, device=device), use_cache=False).logits
    logits_PV = torch.stack([logits_RTV[piece.row, piece.end - 1] for piece in plan.pieces])
    layer_outputs = {
        path: torch.cat([output_TX[p.row * length + p.begin : p.row * length + p.end] for p in plan.pieces])
        for path, output_TX in recorded.items()
    }
    return logits_PV, layer_outputs


def _first_difference(
    model: PreTrainedModel,
    runner: TorchRunner,
    steps: Sequence[Sequence[Segment]],
    expectation: Expectation,
    dtype: torch.dtype,
) -> tuple[str, float] | None:
    """Run the steps again, uncompiled, and compare what every part of every layer puts out."""
    outputs: list[LayerOutputs] = []
    aside = runner.programs.set_aside() if runner.programs is not None else nullcontext()
    with torch.compiler.set_stance("force_eager"), aside:
        for segments in steps:
            with recording(model) as recorded:
                runner.logits(segments)
            num_tokens = sum(len(segment.token_ids) for segment in segments)
            outputs.append({path: output_TX[:num_tokens] for path, output_TX in recorded.items()})
    found = {path: torch.cat([step[path] for step in outputs]) for path in outputs[0]}
    bounds = {path: _bound(error, dtype) for path, error in expectation.plain_layer_errors.items()}
    return first_difference(found, expectation.layer_outputs, bounds)


def _differs(
    model: PreTrainedModel, comparison: Comparison, dtype: torch.dtype, first: tuple[str, float] | None
) -> ModelNotServableError:
    if first is None:
        path, where = model.config.model_type, "uncompiled, every layer agrees: it is the head, or compiled code"
    else:
        path, error = first
        where = f"the first to differ is {path} ({type(model.get_submodule(path)).__name__}), by {error:.3g}"
    element_type = str(dtype).removeprefix("torch.")
    return ModelNotServableError(
        f"{model.config.model_type}: the worker's logits are off by {comparison.found:.3g} (relative), and at most "
        f"{comparison.bound:.3g} is rounding: plain transformers in {element_type} is off by {comparison.plain:.3g}; "
        f"{where}; this model cannot be served exactly",
        path,
    )


def _steps(limits: EngineLimits, plan: Plan, prompts: Sequence[tuple[int, ...]]) -> list[list[Segment]]:
    """The plan's steps as the runner takes them, each row in blocks of its own."""
    tables: list[tuple[int, ...]] = []
    for prompt in prompts:
        first_block = tables[-1][-1] + 1 if tables else 0
        tables.append(tuple(range(first_block, first_block + limits.blocks_for(len(prompt)))))

    def segment(piece: Piece) -> Segment:
        token_ids = prompts[piece.row][piece.begin : piece.end]
        return Segment(token_ids, piece.begin, tables[piece.row], (), Sampling())

    return [[segment(piece) for piece in step] for step in plan.steps]
