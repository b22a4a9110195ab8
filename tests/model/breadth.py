"""`python -m tests.model.breadth [--write]`: which architectures are served, as docs/base-models.md has it."""

import argparse
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hotslot.contract.generation import Sampling
from hotslot.errors import HotslotError
from tests.model.architectures import CASES, Case
from tests.model.driver import Driver
from tests.model.tiny_worker import apart, decoded, load_tiny
from tests.support.tiny_models import PeftOracle, make_adapter, save_model
from worker_service.engine.core import EngineCore
from worker_service.engine.messages import Segment
from worker_service.model.cpu.recorder import NotRecordableError
from worker_service.model.forward_calls import noted
from worker_service.model.options import LoadedModel
from worker_service.model.weights import HostAdapter

PAGE = Path(__file__).resolve().parents[2] / "docs" / "base-models.md"
BEGIN, END = "<!-- measured by `python -m tests.model.breadth --write` -->\n", "<!-- end of what was measured -->\n"
TOLERANCE = 1e-3
NUM_ANSWER_TOKENS = 6
PROMPTS = {
    name: tuple(torch.randint(3, 64, (length,), generator=torch.Generator().manual_seed(length)).tolist())
    for name, length in {"base": 19, "attention": 23, "all linears": 12}.items()
}
"""Two of them longer than the windows, one ending inside of a block of the cache."""


@dataclass(frozen=True)
class Finding:
    """What is known of one architecture after loading it and comparing it with PEFT."""

    model_type: str
    is_served: bool
    targets: tuple[str, ...]
    """Last names of the modules that adapters may target."""
    problem: str
    """Why it is not served, or how its answers differ from PEFT's; empty when they do not."""
    notes: str

    @property
    def row(self) -> str:
        """Its line of the table."""
        served = "yes" if self.is_served else "refused"
        return f"| `{self.model_type}` | {served} | {', '.join(self.targets) or '–'} | {self.notes} |\n"


def examine(model_type: str, case: Case, folder: Path, *, compile_it: bool = False) -> Finding:
    """Load a tiny model of the architecture as a worker does, self-test included, and compare its adapters."""
    base = save_model(folder / "base", case.architecture)
    with apart():
        try:
            loaded = load_tiny(base, compile=compile_it)
        except HotslotError as exc:
            return Finding(model_type, False, (), exc.message, case.notes)
        targets = sorted({path.rpartition(".")[2] for path in loaded.target_paths})
        problems = compare(loaded, base, case, targets, folder)
    return Finding(model_type, True, tuple(targets), "; ".join(problems), case.notes)


def compare(loaded: LoadedModel, base: Path, case: Case, targets: list[str], folder: Path) -> list[str]:
    """What differs from freshly loaded PEFT, in one batch of the base and two adapters."""
    arguments = {"attention": [case.architecture.attention], "all linears": targets}
    adapters: dict[str, HostAdapter] = {}
    oracles = {"base": PeftOracle(base)}
    for name, target_modules in arguments.items():
        others: dict[str, Any] = {"exclude_modules": case.architecture.others} if case.architecture.others else {}
        adapter = make_adapter(base, folder / name, target_modules=target_modules, r=6, lora_alpha=12, **others)
        adapters[name] = decoded(loaded, adapter)
        oracles[name] = PeftOracle(base, adapter)
    problems = []
    for name, found_V in _logits(loaded, adapters).items():
        expected_V = oracles[name].logits(PROMPTS[name])[-1]
        error = float((found_V - expected_V).abs().max())
        if not error <= TOLERANCE:
            problems.append(f"{name}: logits differ by {error:.3g}")
        if name != "base" and torch.allclose(expected_V, oracles["base"].logits(PROMPTS[name])[-1], atol=0.05):
            problems.append(f"{name}: the adapter shows too little to be compared")
    problems += differing_calls(loaded)
    driver = Driver(EngineCore(loaded.runner, loaded.limits, lambda: 0.0))
    rows = {
        name: driver.submit(
            PROMPTS[name], ((adapters[name], 1.0),) if name in adapters else (), max_tokens=NUM_ANSWER_TOKENS
        )
        for name in PROMPTS
    }
    driver.finish()
    for name, row in rows.items():
        if driver.token_ids(row) != oracles[name].greedy(PROMPTS[name], NUM_ANSWER_TOKENS):
            problems.append(f"{name}: answers differ")
    return problems


def _logits(loaded: LoadedModel, adapters: dict[str, HostAdapter]) -> dict[str, torch.Tensor]:
    """After each prompt, whose last token is computed in a second step."""
    steps: tuple[list[Segment], list[Segment]] = ([], [])
    next_slot = next_block = 0
    for name, ids in PROMPTS.items():
        num_slots = loaded.limits.slots_for(adapters[name].max_rank) if name in adapters else 0
        slots = range(next_slot, next_slot + num_slots)
        blocks = tuple(range(next_block, next_block + loaded.limits.blocks_for(len(ids))))
        next_slot, next_block = slots.stop, blocks[-1] + 1
        if name in adapters:
            for _ in loaded.runner.write_slots(slots, adapters[name]):
                pass
        gates = tuple((slot, 1.0) for slot in slots)
        steps[0].append(Segment(ids[:-1], 0, blocks, gates, Sampling()))
        steps[1].append(Segment(ids[-1:], len(ids) - 1, blocks, gates, Sampling()))
    loaded.runner.logits(steps[0])
    return dict(zip(PROMPTS, loaded.runner.logits(steps[1]).clone(), strict=False))


def differing_calls(loaded: LoadedModel) -> list[str]:
    """How calls noted of one step's forward differ from the forward in another step; none where they cannot be noted.

    Layers are called uncompiled here, so experts that values choose cannot be.
    """
    runner, num_rows = loaded.runner, loaded.limits.max_running

    def step(seed: int) -> list[Segment]:
        drawn = torch.randint(3, 60, (num_rows,), generator=torch.Generator().manual_seed(seed)).tolist()
        tables = [tuple(range(3 * row, 3 * row + 3)) for row in range(num_rows)]
        return [Segment((t,), seed + row % 4, tables[row], (), Sampling()) for row, t in enumerate(drawn)]

    with torch.no_grad():
        kind = runner.prepare(step(1))
        try:
            calls = noted(lambda: runner.forward(kind), runner.lasting())
        except NotRecordableError as exc:
            return [] if "experts" in str(exc) else [f"its forward's calls cannot be noted: {exc}"]
        expected_RV = runner.forward(runner.prepare(step(2))).clone()
        return [] if torch.equal(calls.run(), expected_RV) else ["its forward's calls answer otherwise"]


def table(findings: list[Finding]) -> str:
    """The page's table."""
    head = "| model type | served | adapters on | notes |\n|---|---|---|---|\n"
    return head + "".join(finding.row for finding in findings)


def table_in(page: str) -> str:
    """The table that a page has."""
    found = re.search(re.escape(BEGIN) + "(.*?)" + re.escape(END), page, re.DOTALL)
    return found[1] if found is not None else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into the page")
    write: bool = parser.parse_args().write
    findings = []
    for model_type, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            findings.append(examine(model_type, case, Path(folder)))
        sys.stdout.write(findings[-1].row + (f"    {findings[-1].problem}\n" if findings[-1].problem else ""))
    page = PAGE.read_text()
    if write:
        PAGE.write_text(page.replace(BEGIN + table_in(page) + END, BEGIN + table(findings) + END))
        return 0
    return int(table(findings) != table_in(page))


if __name__ == "__main__":
    sys.exit(main())
