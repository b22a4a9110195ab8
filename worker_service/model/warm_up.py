"""The warm-up: runs every bucket once, so that everything is compiled before the first request."""

import time
from collections.abc import Callable

from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import SamplingOptions, Segment
from worker_service.model.options import Bucket
from worker_service.model.runner import TorchRunner

_WANTED = SamplingOptions()


def warm_up(runner: TorchRunner, limits: EngineLimits, on_stage: Callable[[str], None]) -> tuple[Bucket, ...]:
    """Compile each number of tokens with and without adapters, and the head for each number of rows."""
    buckets: list[Bucket] = []
    for num_tokens in runner.token_buckets:
        for with_adapters in (False, True):
            kind = "with adapters" if with_adapters else "base only"
            on_stage(f"compile {num_tokens} tokens, {kind}")
            began_s = time.monotonic()
            runner.logits([_prompt(limits, num_tokens, with_adapters)])
            buckets.append(Bucket(num_tokens, with_adapters, time.monotonic() - began_s))
    for num_rows in runner.row_buckets:
        on_stage(f"compile head for {num_rows} rows")
        rows = min(num_rows, limits.max_running)
        runner.run([Segment((0,), 0, (block,), (), _WANTED) for block in range(rows)])
    return tuple(buckets)


def _prompt(limits: EngineLimits, num_tokens: int, with_adapters: bool) -> Segment:
    """One sequence of that many tokens; slot 0 is empty, so turning it on changes nothing."""
    gates = ((0, 1.0),) if with_adapters else ()
    blocks = tuple(range(limits.blocks_for(num_tokens)))
    return Segment((0,) * num_tokens, 0, blocks, gates, _WANTED)
