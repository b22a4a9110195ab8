"""The GPU report keeps its time, survives what fails, and runs whole on a tiny model without a device."""

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.tiny_worker import apart
from tools.bench import gpu_report
from tools.bench.gpu_exactness import smollm2_exactness
from tools.bench.gpu_page import HEADING, UNMEASURED, section, with_section
from tools.bench.gpu_parts import PARTS
from tools.bench.gpu_report import NO_DEVICE, NO_DEVICE_STATUS, GpuReport
from tools.bench.gpu_results import committed_gpu

HEAD = {"date": "2030-01-02", "model": "m", "machine": {"device": "d", "torch": "3", "copy_gb_s": 4200.0}}


def test_without_a_device_it_says_so_and_ends_with_its_own_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_report.main([]) == NO_DEVICE_STATUS
    assert capsys.readouterr().err.strip() == NO_DEVICE


@pytest.mark.parametrize("wrong", [["--device", "cpu"], ["--device", "cpu", "--tiny", "--commit"]], ids=" ".join)
def test_figures_of_a_cpu_are_never_committed(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_report.main(wrong)


def test_every_part_has_a_result_on_a_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "gpu.json"
    with apart():
        assert gpu_report.main(["--device", "cpu", "--tiny", "--results", str(results)]) == 0
    written = json.loads(results.read_text())
    parts: dict[str, Any] = written["parts"]
    assert list(parts) == ["start", *PARTS, "unchanged"]
    assert {name: part["why"] for name, part in parts.items() if "why" in part} == {}
    assert parts["captured"]["result"]["differing"] == []
    assert parts["captured"]["result"]["kinds"] == 18
    assert parts["unchanged"]["result"] == {"recompiles": 0, "recorded_again": 0, "moved_tensors": 0}
    assert all(found["differing"] == 0 for found in parts["bits"]["result"].values())
    assert all(row["step_ms"] > 0 and row["roofline_share"] > 0 for row in parts["decoding"]["result"])
    assert parts["stall"]["result"]["activations"] > 0
    assert "\n".join(section(written)).strip() in capsys.readouterr().out


def test_a_part_that_fails_or_has_no_time_left_is_told_and_the_others_are_measured() -> None:
    ticks, kept = count(), []
    report = GpuReport(30.0, lambda: float(next(ticks)), lambda results: kept.append(list(results["parts"])))

    def broken() -> None:
        raise RuntimeError("no | such\nkernel")

    assert report.run("first", 2.0, lambda: {"x": 1.5}) == {"x": 1.5}
    assert report.run("second", 0.0, broken) is None
    assert report.run("third", 50.0, lambda: {"x": 1.0}) is None
    assert report.run("fourth", 0.0, lambda: [{"rows": 1}, {"adapters": 2}]) is not None
    assert kept == [["first"], ["first", "second"], ["first", "second", "third"], [*kept[2], "fourth"]]
    page = "\n".join(section(report.results | HEAD))
    assert "**second**: not measured, RuntimeError: no , such kernel" in page
    assert "s were left, and it may take 50" in page
    assert "| rows | adapters |" in page
    assert "4,200 GB/s" in page


def test_the_section_is_replaced_and_the_rest_of_the_page_stays() -> None:
    page = "# Benchmarks\n\ntext\n"
    unmeasured = with_section(page, None)
    assert UNMEASURED in unmeasured
    followed = f"{unmeasured}\n## All other figures\n\nmore\n"
    measured = with_section(followed, HEAD | {"took_s": 1.0, "parts": {"start": {"why": "w"}}})
    assert measured.count(HEADING) == 1
    assert UNMEASURED not in measured
    assert measured.endswith("\n## All other figures\n\nmore\n")
    assert with_section(measured, None) == followed


def test_the_committed_page_says_what_is_committed() -> None:
    page = (gpu_report.ROOT / "BENCHMARKS.md").read_text(encoding="utf-8")
    assert with_section(page, committed_gpu()) == page


@pytest.mark.slow
def test_smollm2_answers_as_peft_one_step_ahead() -> None:
    with apart():
        found = smollm2_exactness("cpu", compile=False, cpu_kernels=False)
    assert found["equal_to_peft"] == found["answers"] > 2
