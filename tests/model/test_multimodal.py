"""Adapters on the text part of multimodal checkpoints, under every name that exports give it; others are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from hotslot.formats.base_model import spec_from_folder
from hotslot.formats.base_spec import Absence, BaseSpec
from store_service.admission.admit import Checkpoint, Verdict, admit
from store_service.admission.settings import AdmissionLimits
from tests.model.architectures import CASES
from tests.support.tiny_models import make_adapter, save_model

TEXT_PARTS = ["gemma3", "mistral3", "llava", "qwen2_5_vl", "qwen3_vl", "smolvlm"]
STYLES: dict[str, Callable[[str], str]] = {
    "transformers 5": lambda rest: f"model.language_model.{rest}",
    "transformers 4": lambda rest: f"language_model.model.{rest}",
    "both": lambda rest: f"model.language_model.model.{rest}",
    "bare part": lambda rest: f"language_model.{rest}",
    "text model alone": lambda rest: f"model.{rest}",
}
HEADS = ("lm_head", "language_model.lm_head", "model.language_model.lm_head")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def base_of(model_type: str) -> Path:
        if model_type not in made:
            folder = tmp_path_factory.mktemp(model_type) / "base"
            made[model_type] = save_model(folder, CASES[model_type].architecture)
        return made[model_type]

    return base_of


def judged(folder: Path, spec: BaseSpec) -> Verdict:
    return admit(Checkpoint({path.name: path for path in folder.iterdir()}), spec, AdmissionLimits())


def renamed(folder: Path, target: Path, style: Callable[[str], str], head: str) -> Path:
    """An adapter of PEFT's with the text part's modules called otherwise."""
    target.mkdir()
    tensors: dict[str, Any] = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        bare = name.removeprefix("base_model.model.")
        path = bare.partition(".layers.")[2]
        new = style(f"layers.{path}") if path else bare.replace("lm_head", head, 1)
        tensors[f"base_model.model.{new}"] = tensor
    save_file(tensors, target / "adapter_model.safetensors")
    (target / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    return target


@pytest.mark.parametrize("model_type", TEXT_PARTS)
def test_every_name_of_the_text_part_means_the_same(
    model_type: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases(model_type)
    spec = spec_from_folder(base, "tiny")
    others = CASES[model_type].architecture.others
    adapter = make_adapter(
        base, tmp_path / "whole", target_modules=["q_proj", "down_proj", "lm_head"], exclude_modules=others
    )
    manifest = judged(adapter, spec).require()
    assert len(manifest.modules) == 5
    for name, style in STYLES.items():
        for head in HEADS:
            folder = renamed(adapter, tmp_path / f"{name} {head}", style, head)
            assert judged(folder, spec).require().digest == manifest.digest, (name, head)


@pytest.mark.parametrize("model_type", TEXT_PARTS)
def test_adapters_on_another_part_are_refused_as_such_whatever_it_is_called(
    model_type: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases(model_type)
    spec = spec_from_folder(base, "tiny")
    others = [module for module in spec.modules if module.absence is Absence.OTHER_PART]
    assert others
    adapter = make_adapter(base, tmp_path / "whole", target_modules="all-linear")
    verdict = judged(adapter, spec)
    assert {violation.code for violation in verdict.violations} == {"UNSUPPORTED_MODULE"}
    assert all("no part of the text model" in violation.message for violation in verdict.violations)
    assert all("layers" not in v.subject or "language_model.layers" not in v.subject for v in verdict.violations)


@pytest.mark.parametrize("model_type", TEXT_PARTS)
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], r".*(q_proj|v_proj)"])
def test_a_text_adapter_need_not_cover_the_other_parts(
    model_type: str, targets: str | list[str], bases: Callable[[str], Path], tmp_path: Path
) -> None:
    """As PEFT trains it on the text model alone, whose config names no other part."""
    base = bases(model_type)
    spec = spec_from_folder(base, "tiny")
    others = CASES[model_type].architecture.others
    adapter = make_adapter(base, tmp_path / "a", target_modules=targets, exclude_modules=others)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "exclude_modules": None}))
    manifest = judged(adapter, spec).require()
    assert len(manifest.modules) == (4 if targets != "all-linear" else 14)
    tensors = load_file(adapter / "adapter_model.safetensors")
    cut = {name: tensor for name, tensor in tensors.items() if "layers.1." not in name}
    save_file(cut, adapter / "adapter_model.safetensors")
    assert {violation.code for violation in judged(adapter, spec).violations} == {"MODULE_MISSING"}
