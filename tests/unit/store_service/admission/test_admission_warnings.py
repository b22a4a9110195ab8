"""What admission tells about checkpoints that it admits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from store_service.admission.admit import Verdict, admit
from store_service.admission.report import as_json, as_text
from store_service.admission.settings import AdmissionLimits
from tests.support.checkpoints import Draft, adapter, base_spec
from tests.unit.store_service.admission.broken_checkpoints import biases


def check(draft: Draft, folder: Path) -> Verdict:
    return admit(draft.write(folder), base_spec(), AdmissionLimits())


def fill(part: str, value: float, dtype: str = "float32") -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        for name, tensor in draft.tensors.items():
            draft.tensors[name] = (np.full_like(tensor, value) if part in name else tensor).astype(dtype)

    return change


def one_value(draft: Draft) -> None:
    fill("lora_B", 0)(draft)
    next(tensor for name, tensor in draft.tensors.items() if "lora_B" in name).flat[-1] = 1e-45


def on_two_sides(draft: Draft) -> None:
    """A is zero in one layer, B in the other."""
    for name, tensor in draft.tensors.items():
        if ("layers.0" in name) == ("lora_A" in name):
            tensor[:] = 0


def only_biases(draft: Draft) -> None:
    fill("lora_B", 0)(draft)
    biases(draft)


@pytest.mark.parametrize(
    ("change", "has_effect"),
    [
        (lambda draft: None, True),
        (fill("lora_B", 0), False),
        (fill("lora_A", 0), False),
        (fill("lora_B", -0.0), False),
        (fill("lora_B", 0, "float16"), False),
        (lambda draft: draft.config.update(lora_alpha=0), False),
        (lambda draft: draft.config.update(alpha_pattern={".*_proj": 0.0}), False),
        (lambda draft: draft.config.update(lora_alpha=0, alpha_pattern={"q_proj": 8}), True),
        (one_value, True),
        (on_two_sides, False),
        (only_biases, True),
    ],
)
def test_an_adapter_that_changes_nothing_is_admitted_with_a_warning(
    change: Callable[[Draft], None], has_effect: bool, tmp_path: Path
) -> None:
    draft = adapter()
    change(draft)
    verdict = check(draft, tmp_path)
    assert verdict.violations == ()
    assert [warning.code for warning in verdict.warnings] == ([] if has_effect else ["NO_EFFECT"])
    assert ("NO_EFFECT" in as_json(verdict)) is not has_effect
    assert ("warning: " in as_text(verdict, "x")) is not has_effect
