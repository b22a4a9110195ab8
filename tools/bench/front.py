"""`python -m tools.bench.front`: processor time of a worker for each token that it streams, and tokens a message.

A worker over the echo model, which computes nothing, in a process of its own; streams run for as many tokens as a
sequence may have. One process of clients beside it decides how fast readers are, so rates are those of this machine.
"""

import argparse
import asyncio
import json
import time
from contextlib import AsyncExitStack

from hotslot.pb.hotslot.worker.v1 import inference_pb2
from tests.support.echo_worker import Calls, make_request
from tools.bench.echo import cpu_s, worker
from tools.bench.processes import log_errors_only

PROMPT = "endless"
TOKENS = 480
"""Number of a stream; the echo model's sequences may have 512."""
NO_STORE = "127.0.0.1:1"


async def _stream(calls: Calls) -> tuple[int, int]:
    """Tokens and messages of one stream."""
    tokens = messages = 0
    request = make_request(text=PROMPT, stop=inference_pb2.StopConditions(max_tokens=TOKENS))
    async for message in calls.inference.Generate(request, timeout=60):
        if message.WhichOneof("event") == "chunk":
            tokens, messages = tokens + len(message.chunk.token_ids), messages + 1
    return tokens, messages


async def measure(num_streams: int, step_s: float, rounds: int) -> dict[str, float]:
    """Figures of so many streams at once, whose steps take so long; of the best round."""
    async with AsyncExitStack() as stack:
        model = f"step {step_s} {num_streams}"
        calls, process = await stack.enter_async_context(worker(NO_STORE, "", model))
        found: list[dict[str, float]] = []
        for _ in range(rounds):
            before_s, own_s, began_s = cpu_s(process), time.process_time(), time.perf_counter()
            counts = await asyncio.gather(*(_stream(calls) for _ in range(num_streams)))
            took_s, tokens = time.perf_counter() - began_s, sum(each for each, _ in counts)
            found.append({
                "streams": num_streams,
                "step_ms": 1000 * step_s,
                "cpu_us_per_token": round(1e6 * (cpu_s(process) - before_s) / tokens, 1),
                "client_cpu_us_per_token": round(1e6 * (time.process_time() - own_s) / tokens, 1),
                "tokens_per_s": round(tokens / took_s),
                "tokens_per_message": round(tokens / sum(each for _, each in counts), 2),
            })  # fmt: skip
        return min(found, key=lambda figures: figures["cpu_us_per_token"])


def main() -> None:
    """Print a line for each number of streams."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", default="1,32,64", help="numbers of streams at once, by commas")
    arguments = parser.parse_args()
    rounds = arguments.rounds
    log_errors_only()
    for num_streams in map(int, arguments.streams.split(",")):
        for step_s in (0.01, 0.0):
            print(json.dumps(asyncio.run(measure(num_streams, step_s, rounds))), flush=True)


if __name__ == "__main__":
    main()
