"""hotslot as users have it: Valkey, store and worker as processes, asked through gRPC by its own client."""

import asyncio
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc

from hotslot import AdapterSelection, Chunk, GenerationRequest, Stop, WorkerClient
from hotslot.clients.store import StoreClient
from tests.support.stack import Stack
from tools.bench.peers.hotslot_engine import BUCKETS, SLOT_RANK, slots_for
from tools.bench.peers.protocol import PeerSettings, PromptRow, TimedAnswer, serve
from worker_service.demo_model import BASE_MODEL


class HotslotGrpc:
    """One deployment for the life of the process."""

    def __init__(self, settings: PeerSettings) -> None:
        self._exit = ExitStack()
        folder = self._exit.enter_context(TemporaryDirectory(prefix="hotslot-bench-"))
        stack = self._exit.enter_context(Stack(Path(folder)))
        store = stack.start_store()
        numbers = {
            "num_slots": slots_for(settings), "slot_rank": SLOT_RANK, "max_rank": max(64, settings.rank),
            "max_sequences": settings.max_rows, "kv_tokens": settings.max_rows * settings.max_tokens,
            "max_sequence_tokens": settings.max_tokens, "num_threads": settings.threads,
            "staleness_s": 3600,
        }  # fmt: skip
        worker = stack.start_worker(
            Path(settings.model),
            model_name=BASE_MODEL,
            buckets=",".join(map(str, BUCKETS)),
            cache_dir=settings.cache_dir,
            **{name: str(value) for name, value in numbers.items()},
            **settings.options,
        )
        self._worker = worker.spec.endpoint
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._push(store.spec.endpoint, settings.adapters))

    def close(self) -> None:
        """Stop the processes."""
        self._exit.close()

    async def _push(self, endpoint: str, folders: list[str]) -> None:
        async with StoreClient(endpoint) as store:
            for number, folder in enumerate(folders):
                await store.push(folder, f"bench/a{number}", base_model=BASE_MODEL)
        self._client = await WorkerClient(self._worker).__aenter__()
        await self._client.connect()
        for number in range(len(folders)):
            await self._client.load(f"bench/a{number}")

    def versions(self) -> dict[str, str]:
        """Version of grpcio."""
        return {"grpcio": grpc.__version__}

    def generate(self, rows: list[PromptRow], num_tokens: int) -> TimedAnswer:
        """One stream a row, all at once."""
        return self._loop.run_until_complete(self._generate(rows, num_tokens))

    async def _generate(self, rows: list[PromptRow], num_tokens: int) -> TimedAnswer:
        began_s = time.perf_counter()
        answers = await asyncio.gather(*(self._ask(row, num_tokens, began_s) for row in rows))
        return TimedAnswer([times_s for times_s, _ in answers], [tokens for _, tokens in answers])

    async def _ask(self, row: PromptRow, num_tokens: int, began_s: float) -> tuple[list[float], list[int]]:
        adapters = () if row.adapter is None else (AdapterSelection(f"bench/a{row.adapter}"),)
        stop = Stop(max_tokens=num_tokens, ignore_eos=True)
        times_s: list[float] = []
        tokens: list[int] = []
        async for event in self._client.generate(GenerationRequest(row.prompt, adapters, stop=stop)):
            if isinstance(event, Chunk):
                times_s += [time.perf_counter() - began_s] * len(event.token_ids)
                tokens += event.token_ids
        return times_s, tokens


if __name__ == "__main__":
    serve(HotslotGrpc)
