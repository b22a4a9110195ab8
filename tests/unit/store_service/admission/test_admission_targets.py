"""Configs that leave the modules to PEFT: the word all-linear, and no targets at all."""

from dataclasses import replace
from pathlib import Path

import pytest

from hotslot.errors import Violation
from hotslot.formats.base_details import BaseDetails, details_from_json
from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
from hotslot.formats.strict_json import StrictJsonError
from store_service.admission.admit import admit
from store_service.admission.settings import AdmissionLimits
from tests.support.checkpoints import HIDDEN, adapter, base_spec

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FIRST = "model.layers.0.self_attn.q_proj"


def violations(folder: Path, base: BaseSpec, cut: str = "", **config: object) -> tuple[Violation, ...]:
    """Of an adapter on all projections, without those whose path contains a text."""
    draft = adapter(LINEARS, spec=base_spec())
    draft.config.update(config)
    draft.tensors = {name: value for name, value in draft.tensors.items() if not cut or cut not in name}
    return admit(draft.write(folder), base, AdmissionLimits()).violations


def with_linears(*paths: str) -> BaseSpec:
    spec = base_spec()
    more = tuple(BaseModule(path, ModuleKind.LINEAR, HIDDEN, HIDDEN) for path in paths)
    return replace(spec, modules=(*spec.modules, *more))


@pytest.mark.parametrize("cut", [FIRST, "k_proj", "layers.1"])
def test_all_linear_means_every_linear_of_every_layer(tmp_path: Path, cut: str) -> None:
    assert violations(tmp_path / "whole", base_spec(), target_modules="all-linear") == ()
    found = violations(tmp_path / "cut", base_spec(), cut, target_modules="all-linear")
    missing = [module.path for module in base_spec().modules if cut in module.path]
    assert [(violation.code, violation.subject) for violation in found] == [("MODULE_MISSING", p) for p in missing]


def test_all_linear_asks_for_no_keys_where_layers_may_use_others(tmp_path: Path) -> None:
    shared = "layers.1.self_attn.k_proj"
    spec = replace(base_spec(), model_type="gemma4_text")
    assert violations(tmp_path / "shared", spec, shared, target_modules="all-linear") == ()
    cut = shared.replace("k_proj", "q_proj")
    assert [v.code for v in violations(tmp_path / "cut", spec, cut, target_modules="all-linear")] == ["MODULE_MISSING"]


def test_all_linear_leaves_out_what_is_excluded(tmp_path: Path) -> None:
    def found_without(cut: str) -> tuple[Violation, ...]:
        folder = tmp_path / f"without {cut}"
        return violations(folder, base_spec(), cut, target_modules="all-linear", exclude_modules=["k_proj"])

    assert found_without("k_proj") == ()
    found = found_without("")
    assert {violation.code for violation in found} == {"MODULE_NOT_TARGETED"}


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_all_linear_means_neither_end_of_the_model(tmp_path: Path, name: str) -> None:
    draft = adapter((*LINEARS, name), spec=base_spec())
    draft.config["target_modules"] = "all-linear"
    found = admit(draft.write(tmp_path), base_spec(), AdmissionLimits()).violations
    assert "MODULE_NOT_TARGETED" in {violation.code for violation in found}


@pytest.mark.parametrize(
    "path",
    [
        "model.layers.0.mlp.gate",
        "model.layers.0.mlp.experts.3.down_proj",
        "vision_tower.encoder.layers.0.self_attn.out_proj",
        "multi_modal_projector.linear_1",
    ],
)
def test_linears_that_may_not_be_loaded_as_such_may_be_missing(tmp_path: Path, path: str) -> None:
    assert violations(tmp_path, with_linears(path), target_modules="all-linear") == ()


def test_layers_that_are_not_loaded_may_be_missing(tmp_path: Path) -> None:
    base = with_linears("model.layers.2.eh_proj", "model.layers.2.self_attn.o_proj")
    assert violations(tmp_path, base, target_modules="all-linear") == ()


def test_no_targets_mean_those_that_peft_takes_for_the_type_of_the_base(tmp_path: Path) -> None:
    draft = adapter(("q_proj", "v_proj"))
    draft.config["target_modules"] = None
    limits = AdmissionLimits()
    assert admit(draft.write(tmp_path / "sound"), base_spec(), limits).violations == ()
    found = violations(tmp_path / "more", base_spec(), target_modules=None)
    assert {violation.code for violation in found} == {"MODULE_NOT_TARGETED"}
    unknown = replace(base_spec(), model_type="phi3")
    (violation,) = admit(draft.write(tmp_path / "unknown"), unknown, limits).violations
    assert (violation.code, violation.subject) == ("UNSUPPORTED_CONFIG", "target_modules")


ABSENT = {
    "model.layers.2.self_attn.q_proj": "beyond those that the model's config has",
    "mtp.layers.0.self_attn.q_proj": "no part of the text model",
    "vision_tower.encoder.layers.0.self_attn.q_proj": "no part of the text model",
    "model.layers.0.mlp.experts.1.down_proj": "all experts of a layer as one parameter",
    "model.layers.0.mlp.gate": "router",
}
"""Linears that a checkpoint may hold and no loaded model has, with what an adapter on them is told."""


def with_absent(path: str) -> BaseSpec:
    """As it is registered from a folder whose config has two layers."""
    details = details_from_json(BaseDetails(layers={"num_hidden_layers": 2}).to_json())
    return replace(with_linears(path), details=details)


TARGETS = ["all-linear", list(LINEARS), [*LINEARS, "gate"], r".*\.(q|k|v|o|gate|up|down)_proj"]


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("path", ABSENT)
def test_linears_that_are_not_loaded_are_not_missing(tmp_path: Path, path: str, targets: str | list[str]) -> None:
    assert violations(tmp_path, with_absent(path), target_modules=targets) == ()


@pytest.mark.parametrize("path", ABSENT)
def test_linears_that_are_not_loaded_are_no_targets(tmp_path: Path, path: str) -> None:
    base = with_absent(path)
    name = path.rpartition(".")[2]
    draft = adapter((*LINEARS, name), spec=base)
    found = admit(draft.write(tmp_path), base, AdmissionLimits()).violations
    assert [(violation.code, violation.subject) for violation in found] == [("UNSUPPORTED_MODULE", path)]
    assert ABSENT[path] in found[0].message


def test_details_of_a_newer_version_take_the_place_of_older_ones() -> None:
    older, newer = BaseDetails(), BaseDetails(layers={"num_hidden_layers": 2})
    assert newer.says_more_than(older)
    assert not older.says_more_than(newer)
    assert details_from_json(newer.to_json()) == newer
    with pytest.raises(StrictJsonError):
        details_from_json('{"bias_paths": [], "layers": {"num_hidden_layers": "2"}}')
