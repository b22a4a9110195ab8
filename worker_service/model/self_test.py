"""The start-up self-test: this worker's batched, compiled answers against plain transformers on the same prompts.

Dozens of architectures trace cleanly and answer wrong when their attention is replaced, so nothing but a comparison
tells which ones can be served.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from shared.errors import InternalError
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import SamplingOptions, Segment
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


def prompt_lengths(limits: EngineLimits) -> tuple[int, ...]:
    """Lengths of the prompts: as many rows as run at once, as many tokens as one step computes."""
    lengths = PROMPT_LENGTHS[: limits.max_running]
    share = min(1.0, limits.max_step_tokens / sum(lengths))
    return tuple(max(1, int(length * share)) for length in lengths)


@torch.no_grad()
def expect(model: PreTrainedModel, lengths: Sequence[int]) -> Expectation:
    """Run the unmodified model on each prompt alone."""
    generator = torch.Generator().manual_seed(0)
    vocab = model.config.get_text_config().vocab_size
    device = next(model.parameters()).device
    prompts = [tuple(torch.randint(vocab, (length + 1,), generator=generator).tolist()) for length in lengths]
    logits, next_logits = [], []
    for prompt in prompts:
        output = model(input_ids=torch.tensor([prompt], device=device), use_cache=False).logits[0].float()
        logits.append(output[-2])
        next_logits.append(output[-1])
    return Expectation(tuple(prompts), torch.stack(logits), torch.stack(next_logits))


def check(runner: TorchRunner, limits: EngineLimits, expectation: Expectation, dtype: torch.dtype) -> float:
    """Run the same prompts in one batch; returns the largest relative error. Raises InternalError past the bound."""
    prompts = expectation.prompts
    found_PV = runner.logits(_segments(limits, prompts, 0))[: len(prompts)]
    next_PV = runner.logits(_segments(limits, prompts, 1))[: len(prompts)]
    errors_P = [
        float((found - expected).norm() / expected.norm())
        for found, expected in zip(
            torch.cat([found_PV, next_PV]).float(),
            torch.cat([expectation.logits_PV, expectation.next_logits_PV]),
            strict=True,
        )
    ]
    worst = max(errors_P)
    bound = MAX_RELATIVE_ERROR[dtype]
    if not worst <= bound:
        raise InternalError(
            f"the compiled model's logits differ from plain transformers' by {worst:.3g} (relative), at most "
            f"{bound} is rounding; this architecture cannot be served exactly"
        )
    return worst


def _segments(limits: EngineLimits, prompts: Sequence[tuple[int, ...]], step: int) -> list[Segment]:
    """The prompts without their last token, or the last tokens alone."""
    segments = []
    blocks_each = limits.blocks_for(max(PROMPT_LENGTHS) + 1)
    for index, prompt in enumerate(prompts):
        begin, end = (0, len(prompt) - 1) if step == 0 else (len(prompt) - 1, len(prompt))
        table = tuple(range(index * blocks_each, (index + 1) * blocks_each))
        segments.append(Segment(prompt[begin:end], begin, table, (), SamplingOptions()))
    return segments
