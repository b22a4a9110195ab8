"""`python -m tests.support.compile_tiny MODEL CACHE_DIR STORE`: a worker's start on a tiny model, with shared code.

Prints what the compiler found in its cache, and the digest of an answer, as JSON.
"""

import asyncio
import json
import sys
from pathlib import Path

from torch._dynamo.utils import counters

from hotslot.contract.generation import Sampling
from hotslot.ids import DEFAULT_TENANT
from hotslot.rpc.channel import open_channel
from worker_service.compiled_code.archive import Archiver
from worker_service.compiled_code.sharing import CodeSharing, CodeStore
from worker_service.engine.messages import Segment
from worker_service.model.loading import load_model
from worker_service.model.options import ModelOptions
from worker_service.model.step_programs import digest_of_logits

SECRET = b"only these workers know it"


async def main(model: str, cache_dir: Path, store: str) -> None:
    options = ModelOptions(
        model=model,
        model_name="test/tiny",
        dtype="float32",
        num_slots=1,
        slot_rank=8,
        max_rank=8,
        max_sequences=1,
        kv_tokens=64,
        max_sequence_tokens=32,
        token_buckets=(2,),
        cache_dir=cache_dir,
        num_threads=1,
    )
    async with open_channel(store) as channel:
        archiver = Archiver(cache_dir, 2**26, SECRET)
        sharing = CodeSharing(CodeStore(channel, DEFAULT_TENANT), archiver, True, asyncio.get_running_loop())
        loaded = await asyncio.to_thread(load_model, options, shared_code=sharing)
        await asyncio.sleep(0)
        await sharing.uploaded()
    found = {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss")}
    stages = [stage.name for stage in loaded.startup_stages]
    logits = loaded.runner.logits([Segment((1, 2), 0, (0,), (), Sampling())])
    print(json.dumps({**found, "stages": stages, "digest": digest_of_logits(logits[:1])}))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
