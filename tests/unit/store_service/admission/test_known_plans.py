"""A checkpoint's verdict is the same whatever was admitted before it, and one like the last is not planned again."""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from hotslot.formats.base_spec import Absence, BaseSpec
from store_service.admission import admit as admission
from store_service.admission import checks
from store_service.admission.admit import Checkpoint, Verdict, admit
from store_service.admission.known_plans import KnownPlans
from store_service.admission.settings import AdmissionLimits
from tests.support.checkpoints import Draft, adapter, base_spec
from tests.unit.store_service.admission.broken_checkpoints import CORPUS

Outcome = tuple[Verdict, bytes]


def outcome(checkpoint: Checkpoint, base: BaseSpec, limits: AdmissionLimits, plans: KnownPlans | None) -> Outcome:
    written = bytearray()
    verdict = admit(checkpoint, base, limits, written.extend, plans=plans)
    return verdict, bytes(written) if verdict.manifest is not None else b""


def sound_drafts() -> list[Draft]:
    """Sound ones that differ in values, places, names and config, and two that only their values tell apart."""
    sound = [adapter(seed=1), adapter(seed=2), adapter(("q_proj",), seed=3), adapter(rank=2, seed=4)]
    other_alpha = adapter(seed=1)
    other_alpha.config["lora_alpha"] = 16
    turned = adapter(seed=1)
    turned.tensors = dict(reversed(turned.tensors.items()))
    not_finite = adapter(seed=1)
    next(iter(not_finite.tensors.values()))[0, 0] = np.nan
    without_effect = adapter(seed=1)
    for name, tensor in without_effect.tensors.items():
        if "lora_B" in name:
            tensor[:] = 0
    return [*sound, other_alpha, turned, not_finite, without_effect]


def test_verdicts_do_not_depend_on_what_was_admitted_before(tmp_path: Path) -> None:
    spec = base_spec()
    absent = [replace(m, absence=Absence.REPLACED) if m.name == "q_proj" else m for m in spec.modules]
    bases = [spec, base_spec(), replace(spec, modules=tuple(absent)), base_spec("acme/other", 3, "g")]
    limits = [AdmissionLimits(), AdmissionLimits(max_rank=3), AdmissionLimits(max_tensors=3)]
    checkpoints = [draft.write(tmp_path / str(index)) for index, draft in enumerate(sound_drafts())]
    random, plans = Random(5), KnownPlans()
    for _ in range(300):
        files, base, bounds = random.choice(checkpoints).files, random.choice(bases), random.choice(limits)
        known = outcome(Checkpoint(files), base, bounds, plans)
        assert known == outcome(Checkpoint(files), base, bounds, None)


@pytest.mark.parametrize("name", [name for name in CORPUS if "expressions" not in name])
def test_what_is_refused_is_refused_again(tmp_path: Path, name: str) -> None:
    plans = KnownPlans()
    outcome(adapter().write(tmp_path / "sound"), base_spec(), AdmissionLimits(), plans)
    draft = adapter()
    CORPUS[name][0](draft)
    checkpoint = draft.write(tmp_path / "broken")
    base = base_spec()
    first, again = (outcome(Checkpoint(checkpoint.files), base, AdmissionLimits(), plans) for _ in range(2))
    assert first == again
    assert first[0].violations


def test_the_next_step_of_a_training_is_not_planned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, limits, plans = base_spec(), AdmissionLimits(), KnownPlans()
    calls: list[int] = []
    plain = checks.check_tensors

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return plain(*arguments)

    monkeypatch.setattr(admission, "check_tensors", counted)
    digests = set()
    for step in range(5):
        verdict, _ = outcome(adapter(seed=step).write(tmp_path / str(step)), base, limits, plans)
        digests.add(verdict.require().weights_digest)
    assert len(calls) == 1
    assert len(digests) == 5
    outcome(adapter(seed=9).write(tmp_path / "9"), replace(base), limits, plans)
    assert len(calls) == 2, "another object of the base model may say more about it"


def test_plans_are_kept_as_far_as_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, limits, plans = base_spec(), AdmissionLimits(), KnownPlans(max_tensors=8)
    small = adapter(seed=1).write(tmp_path / "small")
    large = adapter(("q_proj", "v_proj", "o_proj"), seed=1).write(tmp_path / "large")
    for checkpoint in (small, large):
        outcome(checkpoint, base, limits, plans)
    monkeypatch.setattr(admission, "check_tensors", pytest.fail)
    assert outcome(small, base, limits, plans)[0].manifest is not None
