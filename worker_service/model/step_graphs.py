"""Captured steps: one graph for each kind of step, replayed on tensors at fixed addresses; the rest runs uncaptured."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import structlog
import torch

from worker_service.engine.graph_counts import GraphCounts, UncapturedKinds, UncapturedReason
from worker_service.model.sampling import Sampler

log = structlog.get_logger(__name__)

MOST_TOKENS = 512
"""Larger steps compute for longer than the host needs to launch them, and their graphs would hold much memory."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Reason for which a kind of step has no graph, in a word and in full."""

    reason: UncapturedReason
    why: str


TOO_LARGE = Refusal(
    UncapturedReason.TOO_LARGE, f"more than {MOST_TOKENS} tokens are bound by computing, not by launches"
)
NEEDS_HOST = Refusal(
    UncapturedReason.NEEDS_HOST, "penalties, biases and log-probabilities are computed with values on the host"
)
TURNED_OFF = Refusal(UncapturedReason.TURNED_OFF, "nothing was captured at the start")


@dataclass(frozen=True, slots=True)
class GraphKey:
    """Kind of step: all that decides what is launched, and with which sizes."""

    num_tokens: int
    num_rows: int
    """Rows of logits; those that no sequence wants are padding."""
    is_decode: bool
    """Each row has one token, and attention takes the form for that."""
    with_adapters: bool
    sampler: Sampler

    def __str__(self) -> str:
        form = f"{self.num_rows} rows" if self.is_decode else f"{self.num_tokens} tokens"
        return f"{form}, {'with adapters' if self.with_adapters else 'base only'}, {self.sampler}"


class Capture(Protocol):
    """Way to keep what a step launches; on CUDA a graph, in tests a recording."""

    def capture(self, compute: Callable[[], None]) -> Callable[[], None]:
        """Keep what `compute` launches; returns what launches it again. Raises RuntimeError where it cannot be kept."""
        ...


class CudaCapture:
    """CUDA graphs that share one pool: no two of them run at once, so what one leaves in it the next may overwrite."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, compute: Callable[[], None]) -> Callable[[], None]:
        """As `Capture`. Other threads, which pin memory meanwhile, do not disturb it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            compute()
        replay: Callable[[], None] = graph.replay
        return replay


def largest_first(keys: Iterable[GraphKey]) -> list[GraphKey]:
    """Order of capturing: the memory that a large step takes in the pool serves every smaller one after it."""
    return sorted(keys, key=lambda k: (-k.num_tokens, -k.num_rows, not k.with_adapters, k.sampler, k.is_decode))


class StepGraphs:
    """Graphs by kind of step, and for each kind without one the reason."""

    def __init__(self) -> None:
        self._replays: dict[GraphKey, Callable[[], None]] = {}
        self.refusals: dict[GraphKey, Refusal] = {}
        self._is_on = True
        self._num_replayed = 0
        self._num_uncaptured: Counter[Refusal] = Counter()

    @property
    def keys(self) -> tuple[GraphKey, ...]:
        """Kinds of steps that have a graph."""
        return tuple(self._replays)

    @property
    def counts(self) -> GraphCounts:
        """Graphs, and steps that ran with and without one."""
        kinds, steps = Counter(self.refusals.values()), self._num_uncaptured
        uncaptured = tuple(UncapturedKinds(r.reason, r.why, kinds[r], steps[r]) for r in kinds | steps)
        return GraphCounts(len(self._replays), self._num_replayed, uncaptured)

    def refuse(self, key: GraphKey, reason: UncapturedReason, why: str) -> None:
        """Run steps of this kind uncaptured from now on."""
        self._replays.pop(key, None)
        self.refusals[key] = Refusal(reason, why)
        log.warning("step_not_captured", step=str(key), reason=str(reason), why=why)

    def capture(self, keys: Iterable[GraphKey], capture: Capture, computing: Callable[[GraphKey], None]) -> None:
        """Capture what `computing` launches for each of the keys that was not refused, the largest first."""
        for key in largest_first(keys):
            if key in self.refusals:
                continue
            if key.num_tokens > MOST_TOKENS:
                self.refusals[key] = TOO_LARGE
                continue
            try:
                self._replays[key] = capture.capture(lambda key=key: computing(key))  # type: ignore[misc]
            except RuntimeError as exc:  # torch's own, of which a failed capture leaves the device as it was
                self.refuse(key, UncapturedReason.CAPTURE_FAILED, str(exc).partition("\n")[0])

    def run(self, key: GraphKey, computing: Callable[[GraphKey], None]) -> None:
        """Launch a step of this kind: its graph, or what it would have kept."""
        replay = self._replays.get(key) if self._is_on else None
        if replay is None:
            self.count_uncaptured(self.refusals.get(key, TURNED_OFF))
            computing(key)
        else:
            self._num_replayed += 1
            replay()

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Launch every step piece by piece, to compare."""
        self._is_on = False
        try:
            yield
        finally:
            self._is_on = True

    def count_uncaptured(self, refusal: Refusal) -> None:
        """Count a step that no graph computed."""
        self._num_uncaptured[refusal] += 1
