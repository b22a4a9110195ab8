"""Results of a run, as the parts write them, with figures that can be told apart."""

from typing import Any

from tools.bench.cases import CASES, Case, CaseKind, RunLevel
from tools.bench.figures import SHORT

READ_GB_S = 20.0
MORE_ADAPTERS = ("resident", "4x_uniform", "4x_zipf", "16x_uniform", "16x_zipf")


def side_by_side(rates: dict[tuple[str, str], float], level: RunLevel = RunLevel.MAIN) -> dict[str, Any]:
    """Every case of a level; `rates` are tokens a second by peer and case, and usual ones where they say nothing."""
    return {
        "cores": 2,
        "versions": {"hotslot, gRPC": {"grpcio": "1"}},
        "cases": [_case(case, rates) for case in CASES[level]],
    }


def _case(case: Case, rates: dict[tuple[str, str], float]) -> dict[str, Any]:
    def figures(peer: str) -> dict[str, Any]:
        rate = rates.get((peer, case.name), 100.0 if case.context == SHORT else 80.0)
        found: dict[str, Any] = {"tok_s": {"median": rate, "low": rate - 1, "high": rate + 1, "rounds": 3}}
        return found | ({"gap_p50_ms": 1.0, "gap_p99_ms": 2.0} if case.kind is CaseKind.DECODE else {})

    facts = {"rows": case.rows, "adapters": case.adapters, "context": case.context, "kind": case.kind.value}
    return {
        "name": case.name,
        "case": {**facts, "rank": case.rank, "threads": 2 if case.all_cores else 1, "all_cores": case.all_cores},
        "peers": {spec.name: figures(spec.name) for spec in case.peers},
        "skipped": {},
    }


def results(rates: dict[tuple[str, str], float] | None = None, **parts: Any) -> dict[str, Any]:
    """All parts; those that are named replace the usual ones."""
    ttft = {"ttft_p50_ms": 100.0, "ttft_p99_ms": 200.0, "ttft_max_ms": 300.0}
    usual = {
        "limits": {
            "1": {"read_gb_s": 10.0, "copy_gb_s": 5.0},
            "2": {"read_gb_s": READ_GB_S, "copy_gb_s": 9.0},
        },
        "side_by_side": side_by_side(rates or {}),
        "hot_swap": {
            "hot_swap_ms": 1.0, "copy_of_its_bytes_ms": 0.8, "peft_from_memory_ms": 30.0, "swaps": 10_000,
            "recompiles": 0,
        },
        "idle_slots": {"with_slots_tok_s": 99.5, "without_tok_s": 100.0, "with_over_without": 0.995},
        "start": {"cold": {"ready_s": 25.0}, "warm": {"ready_s": 5.0}},
        "load": {
            "cold": {"beyond_warm_ms": 50.0, "warm_first_token_ms": 40.0},
            "open": {
                "adapters": 64, "slots": 8, "knee_per_s": 4,
                "rates": [
                    {
                        "rate_per_s": 4, "requests": 20, "refused": 1, "tok_s": 60.0, "ttft_p50_ms": 50.0,
                        "ttft_p99_ms": 90.0, "total_p50_ms": 500.0, "total_p99_ms": 900.0,
                    }
                ],
            },
        },
        "serving": {
            "swaps_beside_rows": {
                "gap_p50_ms": 50.0, "gap_p99_ms": 60.0, "gap_max_ms": 70.0, "gap_p99_while_swapping_ms": 63.0,
                "gap_max_while_swapping_ms": 90.0,
            },
            "more_adapters_than_slots": dict.fromkeys(MORE_ADAPTERS, ttft),
        },
        "publishing": {
            "2 MB": {"limit_ms": 20.0, "first_token_ms": {"median": 60.0}},
            "20 MB": {"limit_ms": 60.0, "first_token_ms": {"median": 160.0}},
        },
        "placement": {
            "decision_us": {"on its home": 5.0, "on no worker": 42.0},
            "cold_loads_over_oracles": {"zipf": 1.05, "stale hints": 1.15},
        },
        "store": {
            "store": {
                "streams": {
                    "best_raw": "raw_256_kib", "mib_s": {"raw_256_kib": 1000, "verified_by_store_and_worker": 850},
                    "over_best_raw": {"verified_by_store_and_worker": 0.85},
                }
            }
        },
    }  # fmt: skip
    return {
        "date": "2026-11-30",
        "level": "main",
        "kind": "2-some-cpu-abcdef",
        "machine": {"cpu": "Some CPU", "cores": 2, "flags": ["avx2", "fma"]},
        "parts": {
            name: {"date": "2026-11-30", "level": "main", "commit": "abc", "busy_before": 0.0, "took_s": 1.0,
                   "result": result}
            for name, result in (usual | parts).items()
        },
    }  # fmt: skip
