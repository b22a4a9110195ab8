"""`make demo`: really trained adapters on a real model, mixed in one batch, then one hot-swapped under load."""

import asyncio
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.demo.chat import ADAPTERS_DIR
from deploy.demo.deployment import WORKER_READY_S, DemoProcesses, deploy
from deploy.demo.http_request import OverHttp, ask_over_http
from deploy.demo.scenes import MixedBatch, Swap, hot_swap, mixed_batch
from hotslot import StoreClient, WorkerClient
from hotslot.errors import HotslotError
from hotslot.local.children import Child, ChildFailedError
from worker_service.demo_model import BASE_MODEL, DemoModelError, default_cache_dir, ensure_model

QUESTION = "What is the capital of France?"
SWAPPED, NEXT_VERSION = "pirate", "pirate-v2"
POLL_S = 0.2
SHORT_DIGEST = len("sha256:") + 12

console = Console(highlight=False, soft_wrap=False)


class DemoError(Exception):
    """The demo did not show what it promises."""


def main() -> int:
    """Run the demo; 0 when it showed all that it promises."""
    with _interruptible():
        try:
            with _step("model", "fetching and converting SmolLM2-135M-Instruct (once; about a minute)") as say:
                folder = ensure_model()
                say(f"{BASE_MODEL} in {folder}")
            with deploy(folder, default_cache_dir()) as deployment:
                asyncio.run(_scenes(deployment))
        except KeyboardInterrupt:
            console.print("interrupted; everything was stopped")
            return 130
        except (DemoError, DemoModelError, ChildFailedError, HotslotError, OSError) as exc:
            console.print(f"[red]demo failed:[/red] {exc}", markup=True)
            return 1
    return 0


async def _scenes(deployment: DemoProcesses) -> None:
    async with (
        StoreClient(deployment.store.spec.endpoint) as store,
        WorkerClient(deployment.worker.spec.endpoint) as worker,
    ):
        with _step("worker", "loading and compiling the model (a minute or two the first time)") as say:
            await _ready(deployment.worker)
            status = await worker.status()
            stages = ", ".join(f"{stage.name} {stage.duration_s:.1f} s" for stage in status.startup)
            say(f"ready with {len(status.buckets)} compiled buckets ({stages})")
        names = await _push_all(store)
        batch = await mixed_batch(worker, QUESTION, names)
        _show_batch(batch)
        await _ready(deployment.gateway)
        over_http = await ask_over_http(deployment.gateway.spec.endpoint, QUESTION, SWAPPED)
        _show_http(over_http)
        version = await store.push(ADAPTERS_DIR / NEXT_VERSION, f"{SWAPPED}:v2")

        async def move_tag() -> None:
            await store.set_tag(SWAPPED, "latest", version.version.digest)

        others = [name for name in names if name != SWAPPED]
        swap = await hot_swap(worker, SWAPPED, others, QUESTION, move_tag)
        _show_swap(swap)
        status = await worker.status()
        console.print(
            f"\nrecompiles = {status.recompiles}   after {status.activations} activations, {status.steps} steps"
        )
        _check(batch, over_http, swap, status.recompiles, version.version.digest)


async def _ready(child: Child) -> None:
    """Wait until it serves, in steps so short that an interruption ends the waiting."""
    deadline_s = time.monotonic() + WORKER_READY_S
    while not await asyncio.to_thread(child.is_ready):
        if child.exit_code() is not None or time.monotonic() > deadline_s:
            raise ChildFailedError(child.failure())
        await asyncio.sleep(POLL_S)


async def _push_all(store: StoreClient) -> list[str]:
    """Push every shipped adapter but the next version of the one that is swapped; returns their names."""
    index: dict[str, Any] = json.loads((ADAPTERS_DIR / "INDEX.json").read_text(encoding="utf-8"))["adapters"]
    table = Table("adapter", "digest", "rank", "modules", "size", title="pushed to the store", title_justify="left")
    names = [name for name in index if name != NEXT_VERSION]
    for name in names:
        version = (await store.push(ADAPTERS_DIR / name, name)).version
        ranks = sorted({module.rank for module in version.modules})
        table.add_row(
            name,
            version.digest[:SHORT_DIGEST],
            "/".join(map(str, ranks)) + (" rsLoRA" if index[name].get("use_rslora") else ""),
            str(len(version.modules)),
            f"{version.weights_size_bytes / 1e6:.1f} MB",
        )
    console.print(table)
    return names


def _show_batch(batch: MixedBatch) -> None:
    table = Table("served by", "digest", "answer", title=f"one mixed batch: {batch.question}", title_justify="left")
    for row in batch.answers:
        table.add_row(row.name, row.digest[:SHORT_DIGEST] or "-", row.text)
    console.print(table)
    tokens = sum(row.num_tokens for row in batch.answers)
    console.print(f"{len(batch.answers)} rows, {tokens} tokens in {batch.num_steps} steps of one compiled model\n")


def _show_http(asked: OverHttp) -> None:
    console.print("the same over OpenAI's HTTP")
    console.print(f"$ {asked.command}", soft_wrap=True, markup=False)
    console.print(f"{asked.text}\n", markup=False)


def _show_swap(swap: Swap) -> None:
    timings = swap.result.timings
    title = f"hot-swap of {SWAPPED} while {swap.tokens_a_second:.0f} tokens/s are streaming"
    table = Table("", "digest", "answer", title=title, title_justify="left")
    table.add_row("before", swap.before.digest[:SHORT_DIGEST], swap.before.text)
    table.add_row("after", swap.after.digest[:SHORT_DIGEST], swap.after.text)
    console.print(table)
    console.print(
        f"swap time {timings.activate_s * 1e3:.1f} ms to copy into slots; "
        f"{swap.call_s * 1e3:.0f} ms in all, of which resolve {timings.resolve_s * 1e3:.0f}, "
        f"fetch and verify {timings.fetch_s * 1e3:.0f}, wait for a step to end {timings.wait_s * 1e3:.0f}"
    )
    console.print(
        f"{swap.tokens_meanwhile} tokens streamed meanwhile; longest gap between two tokens of a stream: "
        f"{swap.longest_gap_before_s * 1e3:.0f} ms before the swap, {swap.longest_gap_s * 1e3:.0f} ms during and after"
    )
    console.print(
        f"{swap.old_requests} streams of {SWAPPED} were served by the old version to their end, "
        f"{swap.new_requests} by the new one"
    )


def _check(batch: MixedBatch, over_http: OverHttp, swap: Swap, recompiles: int, new_digest: str) -> None:
    """Raise DemoError unless everything that was promised is there."""
    texts = [row.text for row in batch.answers]
    tokens = sum(row.num_tokens for row in batch.answers)
    problems = [
        problem
        for broken, problem in (
            (recompiles != 0, f"{recompiles} recompiles after warm-up"),
            (swap.before.digest not in over_http.fingerprint, "HTTP was served by another version than gRPC"),
            (len(set(texts)) != len(texts), "two rows of the mixed batch answered the same"),
            (batch.num_steps >= tokens, "the rows did not share steps"),
            (swap.after.digest != new_digest, f"after the swap {swap.after.digest} served, expected {new_digest}"),
            (swap.before.digest == swap.after.digest, "the swap changed nothing"),
            (swap.before.text == swap.after.text, "both versions answered the same"),
            (swap.tokens_meanwhile == 0, "nothing streamed during the swap"),
        )
        if broken
    ]
    if problems:
        raise DemoError("; ".join(problems))


@contextmanager
def _step(name: str, doing: str) -> "Iterator[Any]":
    """Show what is going on; the block says what came of it."""
    began_s = time.monotonic()
    result: list[str] = []
    with console.status(doing):
        if not console.is_terminal:
            console.print(f"{name:<8}{doing} …")
        yield result.append
    console.print(f"{name:<8}{result[0] if result else 'done'} [{time.monotonic() - began_s:.1f} s]", markup=False)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that the children are stopped either way."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
