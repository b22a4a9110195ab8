"""Architectures answer as freshly loaded PEFT, or are refused at the start with the reason; the page says which."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from hotslot.errors import UnsupportedAdapterError
from tests.model.architectures import CASES
from tests.model.breadth import PAGE, examine, table, table_in
from tests.model.tiny_worker import admitted, apart, load_tiny
from tests.support.tiny_models import make_adapter, save_model


@pytest.mark.parametrize("model_type", CASES)
def test_an_architecture_answers_as_peft_or_is_refused_and_the_page_says_so(model_type: str, tmp_path: Path) -> None:
    case = CASES[model_type]
    finding = examine(model_type, case, tmp_path)
    assert finding.is_served == (not case.refused), finding.problem
    if case.refused:
        assert re.search(case.refused, finding.problem)
    else:
        assert not finding.problem
    assert finding.row in table_in(PAGE.read_text()), "run `python -m tests.model.breadth --write`"


def test_the_page_lists_nothing_else() -> None:
    rows = table_in(PAGE.read_text()).splitlines()
    assert "\n".join(rows[:2]) + "\n" == table([])
    assert [row.split("`")[1] for row in rows[2:]] == list(CASES)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["gemma2", "mixtral", "gpt2"])
def test_compiled_it_answers_as_peft(model_type: str, tmp_path: Path) -> None:
    assert not examine(model_type, CASES[model_type], tmp_path, compile_it=True).problem


def test_an_adapter_on_fused_experts_is_refused_with_the_reason(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", CASES["mixtral"].architecture)
    with apart():
        loaded = load_tiny(base)
    manifest, _ = admitted(loaded, make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"]))
    loaded.decoder.check(manifest)
    path = "model.layers.1.block_sparse_moe.experts.0.w1"
    assert path in loaded.spec.by_path()
    on_expert = replace(manifest, modules=(replace(manifest.modules[0], path=path),))
    with pytest.raises(UnsupportedAdapterError, match=f"{path}: it cannot have slots: once loaded, it is not in"):
        loaded.decoder.check(on_expert)
