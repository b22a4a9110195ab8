"""The start-up self-test: this worker's batched, compiled answers against plain transformers on the same prompts.

Dozens of architectures trace cleanly and answer wrong when their attention is replaced, so nothing but a comparison
tells which ones can be served.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from shared.errors import ModelNotServableError
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import SamplingOptions, Segment
from worker_service.model.layer_outputs import LayerOutputs, first_difference, recording, relative_error
from worker_service.model.runner import TorchRunner

PROMPT_LENGTHS = (3, 17, 9)
"""Rows of different lengths in one step, shortened where a step holds fewer tokens; the token that follows each is
checked in a second step."""
MAX_RELATIVE_ERROR = {torch.float32: 1e-3, torch.bfloat16: 0.08, torch.float16: 0.02}
"""|found - expected| / |expected| over a row's logits. Wrong answers are off by 0.3 and more, rounding by far less."""


@dataclass(frozen=True)
class Expectation:
    """What plain transformers says: the logits after each prompt, and after one more token."""

    prompts: tuple[tuple[int, ...], ...]
    """The last token of each is the one that the second step computes."""
    logits_PV: torch.Tensor
    next_logits_PV: torch.Tensor
    layer_outputs: LayerOutputs
    """Of the prompts side by side as the first step computes them, then of their last tokens."""


def prompt_lengths(limits: EngineLimits) -> tuple[int, ...]:
    """Lengths of the prompts: as many rows as run at once, as many tokens as a step, a sequence and the cache hold."""
    lengths = PROMPT_LENGTHS[: limits.max_running]
    share = min(1.0, limits.max_step_tokens / sum(lengths))
    longest = limits.max_sequence_tokens - 1
    fitting = [max(1, min(int(length * share), longest)) for length in lengths]
    while sum(limits.blocks_for(length + 1) for length in fitting) > limits.num_blocks:
        fitting.pop()
    return tuple(fitting)


@torch.no_grad()
def expect(model: PreTrainedModel, lengths: Sequence[int]) -> Expectation:
    """Run the unmodified model on each prompt alone."""
    generator = torch.Generator().manual_seed(0)
    vocab = model.config.get_text_config().vocab_size
    device = next(model.parameters()).device
    prompts = [tuple(torch.randint(vocab, (length + 1,), generator=generator).tolist()) for length in lengths]
    logits, next_logits = [], []
    outputs: list[LayerOutputs] = []
    for prompt in prompts:
        with recording(model) as recorded:
            output = model(input_ids=torch.tensor([prompt], device=device), use_cache=False).logits[0].float()
        logits.append(output[-2])
        next_logits.append(output[-1])
        outputs.append(recorded)
    layer_outputs = {
        path: torch.cat([each[path][:-1] for each in outputs] + [each[path][-1:] for each in outputs])
        for path in outputs[0]
    }
    return Expectation(tuple(prompts), torch.stack(logits), torch.stack(next_logits), layer_outputs)


def check(
    model: PreTrainedModel, runner: TorchRunner, limits: EngineLimits, expectation: Expectation, dtype: torch.dtype
) -> float:
    """Run the same prompts in one batch; returns the largest relative error.

    Raises ModelNotServableError past the bound, which names the part of the model that is the first to differ.
    """
    prompts = expectation.prompts
    found_PV = runner.logits(_segments(limits, prompts, 0))[: len(prompts)].clone()
    next_PV = runner.logits(_segments(limits, prompts, 1))[: len(prompts)]
    errors_P = [
        relative_error(found, expected)
        for found, expected in zip(
            torch.cat([found_PV, next_PV]).float(),
            torch.cat([expectation.logits_PV, expectation.next_logits_PV]),
            strict=True,
        )
    ]
    # A NaN would be lost in a maximum.
    worst = next((error for error in errors_P if error != error), max(errors_P))
    bound = MAX_RELATIVE_ERROR[dtype]
    if not worst <= bound:
        raise _differs(model, worst, bound, _first_difference(model, runner, limits, expectation, bound))
    return worst


def _first_difference(
    model: PreTrainedModel, runner: TorchRunner, limits: EngineLimits, expectation: Expectation, bound: float
) -> tuple[str, float] | None:
    """Run both steps again, uncompiled, and compare what every part of every layer puts out."""
    prompts = expectation.prompts
    num_tokens = sum(len(prompt) - 1 for prompt in prompts)
    with torch.compiler.set_stance("force_eager"):
        with recording(model) as first:
            runner.logits(_segments(limits, prompts, 0))
        with recording(model) as second:
            runner.logits(_segments(limits, prompts, 1))
    found = {
        path: torch.cat([first[path][:num_tokens], second[path][: len(prompts)]]) for path in first if path in second
    }
    return first_difference(found, expectation.layer_outputs, bound)


def _differs(
    model: PreTrainedModel, worst: float, bound: float, first: tuple[str, float] | None
) -> ModelNotServableError:
    if first is None:
        path, where = model.config.model_type, "uncompiled, every layer agrees: it is the head, or compiled code"
    else:
        path, error = first
        where = f"the first to differ is {path} ({type(model.get_submodule(path)).__name__}), by {error:.3g}"
    return ModelNotServableError(
        f"{model.config.model_type}: the worker's logits differ from plain transformers' by {worst:.3g} (relative), at "
        f"most {bound} is rounding; {where}; this model cannot be served exactly",
        path,
    )


def _segments(limits: EngineLimits, prompts: Sequence[tuple[int, ...]], step: int) -> list[Segment]:
    """The prompts without their last token, or the last tokens alone."""
    segments = []
    next_block = 0
    for prompt in prompts:
        begin, end = (0, len(prompt) - 1) if step == 0 else (len(prompt) - 1, len(prompt))
        table = tuple(range(next_block, next_block + limits.blocks_for(len(prompt))))
        next_block = table[-1] + 1
        segments.append(Segment(prompt[begin:end], begin, table, (), SamplingOptions()))
    return segments
