"""Steps of every kind, audited before they are captured and compared with uncaptured ones afterwards."""

import random
from collections.abc import Callable

import structlog
import torch

from worker_service.engine.graph_counts import UncapturedReason
from worker_service.engine.messages import Segment
from worker_service.model.capture_audit import audit
from worker_service.model.device_steps import DeviceSteps
from worker_service.model.sampling import EXAMPLES, Sampler
from worker_service.model.step_graphs import MOST_TOKENS, Capture, GraphKey, largest_first

log = structlog.get_logger(__name__)

NUM_COMPARED = 2
"""Plans of each kind that are computed with and without its graph."""


def step_of(steps: DeviceSteps, key: GraphKey, draws: random.Random) -> list[Segment]:
    """A step of this kind with random tokens, contexts, blocks, gates and sampling, as large as the cache allows."""
    limits = steps.plan.limits
    smaller = [bucket for bucket in steps.token_buckets if bucket < key.num_tokens]
    total = draws.randint(smaller[-1] + 1 if smaller else 1, key.num_tokens)
    if key.is_decode:
        total = min(total, limits.max_running)
    num_rows = total if key.is_decode else draws.randint(1, min(total, limits.max_running))
    while (
        not key.is_decode and num_rows > 1 and limits.blocks_for(-(-total // num_rows)) * num_rows > limits.num_blocks
    ):
        num_rows -= 1
    counts = [total // num_rows + (row < total % num_rows) for row in range(num_rows)]
    blocks = draws.sample(range(limits.num_blocks), limits.num_blocks)
    most_blocks = max(1, limits.num_blocks // num_rows)
    on = draws.randrange(num_rows) if key.with_adapters else None
    segments = []
    for row, count in enumerate(counts):
        most = min(most_blocks * limits.block_tokens, limits.max_sequence_tokens)
        start = draws.randint(0, max(most - count, 0))
        table = tuple(blocks.pop() for _ in range(limits.blocks_for(start + count)))
        gates: tuple[tuple[int, float], ...] = ()
        if key.with_adapters and (row == on or draws.random() < 0.5):
            gates = ((draws.randrange(limits.num_slots), 1.0),)
        sampling = EXAMPLES[key.sampler if row == 0 else draws.choice([Sampler.GREEDY, key.sampler])]
        tokens = tuple(draws.randrange(steps.num_embeddings) for _ in range(count))
        segments.append(Segment(tokens, start, table, gates, sampling))
    return segments


def persistent_tensors(steps: DeviceSteps) -> list[torch.Tensor]:
    """Tensors that captured steps may hold the addresses of: the model with its slots and caches, and the plan."""
    return [*steps.model.parameters(), *steps.model.buffers(), *steps.tensors()]


def audited(steps: DeviceSteps, key: GraphKey, draws: random.Random) -> list[str]:
    """Findings of the audit for one kind of step, computed uncompiled with two plans."""

    def send() -> None:
        steps.send(step_of(steps, key, draws), key)

    with torch.compiler.set_stance("force_eager"):
        return audit(send, lambda: steps.compute(key), persistent_tensors(steps))


def capture_steps(steps: DeviceSteps, capture: Capture, on_stage: Callable[[str], None] = lambda _: None) -> None:
    """Audit each form of step, capture every kind of those that passed, and drop a graph that answers otherwise.

    Each kind has run before, so that nothing is compiled meanwhile.
    """
    draws = random.Random(7)
    keys = [key for key in steps.kinds if key.num_tokens <= MOST_TOKENS]
    on_stage("audit steps")
    smallest = {_form(key): key for key in largest_first(keys)}
    findings = {form: audited(steps, key, draws) for form, key in smallest.items()}
    for key in keys:
        if findings[_form(key)]:
            steps.graphs.refuse(key, UncapturedReason.NOT_CAPTURABLE, findings[_form(key)][0])
    steps.capture(capture, on_stage)
    on_stage("compare captured steps")
    for key in steps.graphs.keys:
        if not all(replays_exactly(steps, key, draws) for _ in range(NUM_COMPARED)):
            steps.graphs.refuse(key, UncapturedReason.DIFFERS, "its graph answers otherwise than the step itself")
    log.info("steps_captured", kinds=len(steps.graphs.keys), uncaptured=len(steps.graphs.refusals))


def replays_exactly(steps: DeviceSteps, key: GraphKey, draws: random.Random) -> bool:
    """Compute a random step with and without its graph; tells whether tokens and highest logits are the same bits."""
    segments = step_of(steps, key, draws)
    before_R2 = steps.results_R2.clone()
    steps.send(segments, key)
    steps.compute(key)
    expected_R2 = steps.results_R2[: len(segments)].clone()
    # What the step before chose may feed it.
    steps.results_R2.copy_(before_R2)
    steps.graphs.run(key, steps.compute)
    return torch.equal(steps.results_R2[: len(segments)], expected_R2)


def _form(key: GraphKey) -> tuple[bool, bool, Sampler]:
    """Forms differ in what they launch, kinds of one form in sizes alone."""
    return key.is_decode, key.with_adapters, key.sampler
