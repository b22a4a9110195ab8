"""The warm-up: runs every bucket once, so that everything is compiled before the first request."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from hotslot.contract.control import CompiledBucket
from hotslot.contract.generation import Sampling
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import Segment
from worker_service.model.cpu.kernels_to_come import KernelNotBuiltError, kernels_to_come
from worker_service.model.runner import TorchRunner

_WANTED = Sampling()
_FIRST_SLOT = ((0, 1.0),)
"""The slot is empty, so turning it on changes nothing."""


def trace_ahead(
    runner: TorchRunner, limits: EngineLimits, on_stage: Callable[[str], None], preparing: threading.Thread | None
) -> None:
    """Trace every graph of the layers that the warm-up will call, each while the last one's kernels are built, on CPU.

    `preparing` is making what the first kernel needs; without it nothing is traced. Of a model whose layers differ, the
    first kind is; the warm-up meets the others.
    """
    if preparing is None:
        return
    preparing.join()
    with kernels_to_come():
        for num_tokens, with_adapters in _compiled_kinds(runner):
            on_stage(f"trace {num_tokens} tokens, {_name(with_adapters=with_adapters)}")
            with contextlib.suppress(KernelNotBuiltError):
                runner.logits([_prompt(limits, num_tokens, with_adapters)])


def warm_up(runner: TorchRunner, limits: EngineLimits, on_stage: Callable[[str], None]) -> tuple[CompiledBucket, ...]:
    """Compile each number of tokens with and without adapters, and the head for each number of rows.

    What programs of an earlier start compute is not compiled: no step of it goes through the compiled layers.
    """
    programs = runner.programs
    took_s = {
        (num_tokens, with_adapters): 0.0 for num_tokens in runner.token_buckets for with_adapters in (False, True)
    }
    for num_tokens, with_adapters in _compiled_kinds(runner):
        on_stage(f"compile {num_tokens} tokens, {_name(with_adapters=with_adapters)}")
        began_s = time.monotonic()
        runner.logits([_prompt(limits, num_tokens, with_adapters)])
        took_s[num_tokens, with_adapters] = time.monotonic() - began_s
    for num_tokens in runner.decode_buckets:
        for gates in ((), _FIRST_SLOT):
            on_stage(f"compile decoding of {num_tokens} rows, {'with adapters' if gates else 'base only'}")
            runner.logits(_rows(limits, num_tokens, gates))
    gates_of_heads = ((), _FIRST_SLOT) if runner.has_head_slots else ((),)
    for num_rows in runner.row_buckets:
        if programs is not None and programs.serves_head(num_rows):
            continue
        for gates in gates_of_heads:
            on_stage(f"compile head for {num_rows} rows{', with adapters' if gates else ''}")
            runner.run(_rows(limits, num_rows, gates))
    return tuple(CompiledBucket(*kind, duration_s) for kind, duration_s in took_s.items())


def _compiled_kinds(runner: TorchRunner) -> Iterator[tuple[int, bool]]:
    """Kinds of steps that no program computes: their tokens, and whether adapters are computed."""
    programs = runner.programs
    for num_tokens in runner.token_buckets:
        for with_adapters in (False, True):
            if programs is None or not programs.serves(num_tokens, with_adapters=with_adapters):
                yield num_tokens, with_adapters


def _name(*, with_adapters: bool) -> str:
    return "with adapters" if with_adapters else "base only"


def _rows(limits: EngineLimits, most: int, gates: tuple[tuple[int, float], ...]) -> list[Segment]:
    """As many rows as there are, of one token each."""
    return [Segment((0,), 0, (block,), gates, _WANTED) for block in range(min(most, limits.max_running))]


def _prompt(limits: EngineLimits, num_tokens: int, with_adapters: bool) -> Segment:
    """One sequence of that many tokens."""
    gates = _FIRST_SLOT if with_adapters else ()
    blocks = tuple(range(limits.blocks_for(num_tokens)))
    return Segment((0,) * num_tokens, 0, blocks, gates, _WANTED)
