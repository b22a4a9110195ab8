"""Screens of 60, 80 and 140 columns: names and states stay, and what is left out is said.

`python -m tests.unit.hotslot.cli.test_screens` writes the snapshots anew.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from hotslot.cli.failures import violation_lines
from hotslot.cli.fleet_commands import view
from hotslot.cli.fleet_readings import Reading
from hotslot.cli.output import rendered
from hotslot.cli.rendering import (
    adapter_rows,
    adapters_table,
    contexts_table,
    details_table,
    modules_table,
    placements_table,
    version_rows,
    versions_table,
    workers_table,
)
from hotslot.cli.worker_commands import status_view
from hotslot.contexts import Contexts, SavedContext
from hotslot.contract.catalog import Adapter, Tag, Version
from hotslot.contract.control import AdapterTier, LoadedAdapter, WorkerAdapters, WorkerState, WorkerStatus
from hotslot.contract.placement import Placement, Tier, Worker, WorkerLoad
from hotslot.errors import Violation
from hotslot.formats.manifest import AdapterModule
from hotslot.ids import Digest

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
WIDTHS = (60, 80, 140)
SCREENS = Path(__file__).parent / "screens"
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
DIGEST = Digest("sha256:" + "3f" * 32)
NAMES = ("acme/customer-support-pirate", "de")
MODULES = tuple(AdapterModule(f"model.layers.{i}.self_attn.q_proj", 16, 2.0) for i in range(3))
VERSION = Version(
    NAMES[0], DIGEST, BASE, DIGEST, 16, "F32", DIGEST, 1_234_567, MODULES, "hub:acme/pirate@main",
    NOW - timedelta(hours=3), ("latest", "v1"), '{"r":16}',
)  # fmt: skip
ADAPTERS = [
    Adapter(name, (Tag("latest", DIGEST, "e", NOW), Tag("v1", DIGEST, "e", NOW)), 12, {"team": "sea"},
            NOW - timedelta(days=2), NOW - timedelta(minutes=5), "e", None, None, VERSION)
    for name in NAMES
]  # fmt: skip
VIOLATIONS = [
    Violation.of(
        "SHAPE_MISMATCH", f"model.layers.{i}.self_attn.q_proj.lora_A.weight", "[16, 64]", "[16, 576]", "its shape"
    )
    for i in range(30)
] + [Violation.of("NON_FINITE", "model.layers.0.mlp.up_proj.lora_B.weight", "3 values", "finite ones", "it has NaN")]


WORKERS = [
    Worker(f"w-{state.value}-1d0e", f"10.0.0.{i}:7500", BASE, DIGEST, state, WorkerLoad(2, 1, 8, 3, 8, 0.25),
           NOW - timedelta(hours=i), None, 1, 1, "bfloat16", 64)
    for i, state in enumerate((WorkerState.READY, WorkerState.DRAINING), 1)
]  # fmt: skip
STATUS = WorkerStatus("w-ready-1d0e", WorkerState.READY, DIGEST, NOW - timedelta(hours=1))
HELD = LoadedAdapter(DIGEST, (NAMES[0],), AdapterTier.SLOT, 16, (0, 1), 2, True, 1_234_567, NOW - timedelta(minutes=2))
PLACEMENTS = [Placement(DIGEST, worker.worker_id, Tier.SLOT, True, NAMES[0]) for worker in WORKERS]


def parts(screen: str) -> list[RenderableType]:
    match screen:
        case "ls":
            return [adapters_table(ADAPTERS, NOW)]
        case "show":
            rows = [*adapter_rows(ADAPTERS[0], NOW), *version_rows(VERSION, NOW)]
            return [details_table(rows), versions_table([VERSION], NOW), modules_table(VERSION)]
        case "workers":
            return [workers_table(WORKERS, NOW)]
        case "top":
            return [view(Reading(NOW, WORKERS, PLACEMENTS, {WORKERS[0].worker_id: 123.4}, ""), NOW)]
        case "status":
            return [status_view(STATUS, WorkerAdapters((HELD,), (), True), "and 2 more (--limit 3 shows all)", NOW)]
        case "placements":
            return [placements_table(PLACEMENTS)]
        case "history":
            return [versions_table([VERSION], NOW)]
        case "context":
            return [contexts_table(Contexts("prod", {"prod": SavedContext("store.acme.example:7400", "", "acme")}))]
        case _:
            return ["\n".join(violation_lines(VIOLATIONS))]


def screen_of(name: str, width: int) -> str:
    return rendered(*parts(name), out=Console(width=width, highlight=False, color_system=None)) + "\n"


def all_screens() -> Iterator[tuple[str, int]]:
    names = ("ls", "show", "top", "workers", "validate", "status", "placements", "history", "context")
    yield from ((name, width) for name in names for width in WIDTHS)


@pytest.mark.parametrize(("name", "width"), list(all_screens()))
def test_a_screen_is_as_it_was_looked_at(name: str, width: int) -> None:
    assert screen_of(name, width) == (SCREENS / f"{name}.{width}.txt").read_text()


@pytest.mark.parametrize(("name", "width"), list(all_screens()))
def test_names_and_states_stay_whole_and_what_is_left_out_is_said(name: str, width: int) -> None:
    text = screen_of(name, width)
    assert all(len(line) <= width for line in text.splitlines()) or name == "validate", "a terminal breaks those lines"
    kept = {
        "ls": NAMES,
        "show": (NAMES[0],),
        "validate": (),
        "history": ("latest, v1",),
        "context": ("prod", "*"),
        "placements": (NAMES[0], "slot"),
        "status": (NAMES[0], "slot", "w-ready-1d0e", "ready"),
    }.get(name, tuple(word for worker in WORKERS for word in (worker.worker_id, worker.state.value)))
    assert all(word in text for word in kept)
    if name in ("ls", "workers", "top"):
        assert (BASE in text) or "left out here: BASE MODEL" in text


if __name__ == "__main__":
    SCREENS.mkdir(exist_ok=True)
    for screen, columns in all_screens():
        (SCREENS / f"{screen}.{columns}.txt").write_text(screen_of(screen, columns))
