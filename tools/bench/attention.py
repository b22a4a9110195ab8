"""`python -m tools.bench.attention`: attention of a decoding step alone, in GB/s beside a plain reading of memory.

One thread computes all layers' attention over scattered blocks that are in no cache, and reads as many bytes of other
memory in turns, so that whatever else the machine does falls on both alike. `--sources` takes folders of kernels beside
the checkout's own, such as those of an older commit: each is compiled under a name of its own and takes its turns.
`--march` compiles them for another processor. Prints one JSON object; times are the thread's CPU time, medians.
"""

import argparse
import functools
import json
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch.utils.cpp_extension import include_paths

from tools.bench.limits import ways_of_reading
from worker_service.model.cpu import library
from worker_service.model.huge_pages import zeros_into_huge_pages

BLOCK_TOKENS = 16
SEED = 11


def compiled(source: Path, name: str, march: str, folder: Path) -> Any:
    """Operators of a folder of kernels under a namespace of their own, so that several are in one process."""
    place = folder / name
    place.mkdir()
    for file in (*source.glob("*.h"), *source.glob("*.cpp")):
        (place / file.name).write_text(re.sub(r"\bhotslot(_cpu)?\b", name, file.read_text()))
    libraries = Path(torch.__file__).parent / "lib"
    flags = [flag.replace("native", march) if flag.startswith("-march") else flag for flag in library._FLAGS]
    includes = [f"-I{path}" for path in include_paths()]
    target = folder / f"{name}.so"
    command = [get_cpp_compiler(), *flags, *includes, str(place / "kernels.cpp"), "-o", str(target)]
    subprocess.run([*command, f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch_cpu", "-lc10"], check=True)
    torch.ops.load_library(str(target))  # type: ignore[no-untyped-call]
    return getattr(torch.ops, name)


class AttendedLayers:
    """Caches of all layers, and the step that attends over them."""

    def __init__(self, args: argparse.Namespace, context: int) -> None:
        generator = torch.Generator().manual_seed(SEED)
        blocks = -(-context // BLOCK_TOKENS)
        shape = (args.rows * blocks * BLOCK_TOKENS, args.kv_heads, args.head_size)
        self.layers = [[torch.empty(shape, dtype=torch.bfloat16) for _ in "kv"] for _ in range(args.layers)]
        zeros_into_huge_pages([cache for layer in self.layers for cache in layer])
        noise = torch.randn(shape, generator=generator)
        for layer in self.layers:
            for cache in layer:
                cache.copy_(noise)
        self.q = torch.randn(args.rows, args.heads, args.head_size, generator=generator).bfloat16()
        self.k = torch.randn(args.rows, args.kv_heads, args.head_size, generator=generator).bfloat16()
        self.tables = torch.randperm(args.rows * blocks, generator=generator).view(args.rows, blocks).int()
        self.segments = torch.tensor([[row, 1, context, -1] for row in range(args.rows)])
        self.positions = self.tables[:, -1].long() * BLOCK_TOKENS + (context - 1) % BLOCK_TOKENS
        self.out = torch.empty_like(self.q)
        self.scoring = (args.head_size**-0.5, args.window, args.softcap)
        seen = min(context, args.window or context)
        self.num_bytes = args.layers * 2 * args.rows * seen * args.kv_heads * args.head_size * 2

    def step(self, operators: Any) -> None:
        """Attend once in each layer."""
        for k_cache, v_cache in self.layers:
            operators.attend(
                self.q, self.k, self.k, k_cache, v_cache, self.positions, self.segments, self.tables, BLOCK_TOKENS,
                *self.scoring, 8, self.out,
            )  # fmt: skip


def cpu_ms(call: Callable[[], object]) -> float:
    """CPU time that this thread takes for a call."""
    began_ns = time.thread_time_ns()
    call()
    return (time.thread_time_ns() - began_ns) / 1e6


def measure(args: argparse.Namespace, versions: dict[str, Any], context: int) -> dict[str, Any]:
    """Times of one context's steps, by version, beside the quickest reading of as many bytes."""
    layers = AttendedLayers(args, context)
    reads = ways_of_reading(torch.ones(-(-layers.num_bytes // 4 // 4096) * 4096))
    calls: dict[str, Callable[[], object]] = dict(reads)
    calls |= {name: functools.partial(layers.step, operators) for name, operators in versions.items()}
    took_ms: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(args.rounds + 1):
        for name, call in calls.items():
            ms = cpu_ms(call)
            if turn:
                took_ms[name].append(ms)
    middle_ms = {name: statistics.median(times) for name, times in took_ms.items()}
    read_ms = min(middle_ms[name] for name in reads)
    rates = {name: round(layers.num_bytes / 1e6 / middle_ms[name], 2) for name in versions}
    return {
        "mb": round(layers.num_bytes / 1e6, 1),
        "read_gb_s": round(layers.num_bytes / 1e6 / read_ms, 2),
        **{
            name: {
                "ms": round(middle_ms[name], 2),
                "gb_s": rates[name],
                "of_reading": round(read_ms / middle_ms[name], 3),
            }
            for name in versions
        },
    }


def main() -> None:
    """Measure each context in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--sources", type=Path, nargs="*", default=[], help="folders of other kernels")
    parser.add_argument("--march", default="native", help="the processor that kernels are compiled for")
    parser.add_argument("--rounds", type=int, default=15)
    for name, default in (("rows", 8), ("heads", 9), ("kv-heads", 3), ("head-size", 64), ("layers", 30), ("window", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--softcap", type=float, default=0.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sources = {"checkout": library.SOURCE.parent, **{f"other{i}": path for i, path in enumerate(args.sources)}}
        versions = {name: compiled(path, f"bench_{name}", args.march, Path(folder)) for name, path in sources.items()}
        print(json.dumps({str(context): measure(args, versions, context) for context in args.contexts}, indent=2))


if __name__ == "__main__":
    main()
