"""hotslot's engine in process: the worker's model and engine without gRPC."""

import itertools
import sys
import time
from pathlib import Path

import structlog
import torch
from safetensors import safe_open

from hotslot.contract.generation import Sampling
from hotslot.ids import Digest
from tools.bench.peers.protocol import PeerSettings, PromptRow, TimedAnswer, serve
from worker_service.demo_model import BASE_MODEL
from worker_service.engine.core import EngineCore
from worker_service.engine.messages import AdapterUse, SequenceFailed, SequenceId, StopRules, Submit, TokenReady
from worker_service.model.loading import load_model
from worker_service.model.options import LoadedModel, ModelOptions
from worker_service.model.weights import HostAdapter, HostModule

SLOT_RANK = 16
BUCKETS = (1, 4, 8, 32, 128)


def slots_for(settings: PeerSettings) -> int:
    """Slots that hold all adapters at once, and at least the default's eight."""
    return max(8, len(settings.adapters) * -(-settings.rank // SLOT_RANK))


def adapter_of(folder: Path, number: int, loaded: LoadedModel) -> HostAdapter:
    """A checkpoint that the benchmark wrote, in host memory, one stretch for all of it as decoding makes it."""
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        pairs = {
            path: tuple(file.get_tensor(f"base_model.model.{path}.lora_{side}.weight") for side in "AB")
            for path in loaded.runner.slot_linears
        }
    flat = torch.cat([part.flatten() for a_RI, b_OR in pairs.values() for part in (a_RI, b_OR.T.contiguous())])
    parts = torch.split(flat, [part.numel() for pair in pairs.values() for part in pair])
    modules = {
        path: HostModule(parts[2 * at].view(a_RI.shape), parts[2 * at + 1].view(b_OR.shape[1], -1), 1.0)
        for at, (path, (a_RI, b_OR)) in enumerate(pairs.items())
    }
    rank = next(iter(modules.values())).num_ranks
    return HostAdapter(Digest(f"sha256:{number + 1:064x}"), rank, flat.nbytes, modules)


class HotslotEngine:
    """An engine whose turns are taken in this thread."""

    def __init__(self, settings: PeerSettings) -> None:
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
        loaded = load_model(
            ModelOptions(
                model=settings.model,
                model_name=BASE_MODEL,
                num_slots=slots_for(settings),
                slot_rank=SLOT_RANK,
                max_rank=max(64, settings.rank),
                max_sequences=settings.max_rows,
                kv_tokens=settings.max_rows * settings.max_tokens,
                max_sequence_tokens=settings.max_tokens,
                token_buckets=BUCKETS,
                cache_dir=Path(settings.cache_dir),
                num_threads=settings.threads,
                compile=settings.options.get("compile", "true") == "true",
                weights=settings.options.get("weights", "full"),
            )
        )
        self._core = EngineCore(loaded.runner, loaded.limits, time.monotonic)
        self._adapters = [adapter_of(Path(folder), n, loaded) for n, folder in enumerate(settings.adapters)]
        self._ids = itertools.count(1)

    def versions(self) -> dict[str, str]:
        """Version of torch."""
        return {"torch": torch.__version__}

    def generate(self, rows: list[PromptRow], num_tokens: int) -> TimedAnswer:
        """Submit all rows, then take turns until nothing is left."""
        times_s: list[list[float]] = [[] for _ in rows]
        token_ids: list[list[int]] = [[] for _ in rows]
        began_s = time.perf_counter()
        places = {}
        for place, row in enumerate(rows):
            sequence_id = SequenceId(next(self._ids))
            places[sequence_id] = place
            uses = () if row.adapter is None else (AdapterUse(self._adapters[row.adapter], 1.0),)
            stop = StopRules(num_tokens)
            self._core.handle(Submit(sequence_id, tuple(row.prompt), uses, Sampling(), stop, time.monotonic()))
        while not self._core.idle:
            for event in self._core.turn():
                match event:
                    case TokenReady(sequence_id, token):
                        times_s[places[sequence_id]].append(time.perf_counter() - began_s)
                        token_ids[places[sequence_id]].append(token.token_id)
                    case SequenceFailed(_, error):
                        raise error
        return TimedAnswer(times_s, token_ids)


if __name__ == "__main__":
    serve(HotslotEngine)
