"""Names of tensors: what is one style, what is several, and what the base has in another layout."""

import hashlib
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hotslot.errors import Violation
from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
from store_service.admission.admit import Verdict, admit
from store_service.admission.settings import AdmissionLimits
from tests.support.checkpoints import HIDDEN, KEY_VARIANTS, RANK, VOCAB, WRAPPED_VARIANTS, Draft, adapter, base_spec

STYLES = KEY_VARIANTS | WRAPPED_VARIANTS
PARTIAL = {"FSDP", "checkpointed layers"}
"""Wrap some layers only, so that names of others are PEFT's own."""


def check(draft: Draft, folder: Path, base: BaseSpec | None = None) -> Verdict:
    return admit(draft.write(folder), base or base_spec(), AdmissionLimits())


def codes(violations: tuple[Violation, ...]) -> set[str]:
    return {violation.code for violation in violations}


@pytest.mark.parametrize("variant", WRAPPED_VARIANTS)
def test_wrapped_names_give_the_same_version(variant: str, tmp_path: Path) -> None:
    expected = check(adapter(), tmp_path / "plain").require()
    assert check(adapter(key=WRAPPED_VARIANTS[variant]), tmp_path / "variant").require() == expected


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(sorted(set(STYLES) - PARTIAL), 2)))
def test_a_pair_in_two_styles_is_refused_with_an_example_of_each(one: str, other: str, tmp_path: Path) -> None:
    draft = adapter(key=lambda path, role: STYLES[one if role == "A" else other](path, role))
    violations = check(draft, tmp_path).violations
    assert codes(violations) == {"MIXED_NAMES"}
    path = "model.layers.0.self_attn.q_proj"
    assert STYLES[one](path, "A") in violations[0].message
    assert STYLES[other](path, "B") in violations[0].message


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(sorted(set(STYLES) - PARTIAL), 2)))
def test_modules_in_two_styles_are_refused(one: str, other: str, tmp_path: Path) -> None:
    draft = adapter(key=lambda path, role: STYLES[one if "q_proj" in path else other](path, role))
    assert "MIXED_NAMES" in codes(check(draft, tmp_path).violations)


def test_a_pair_of_which_one_half_is_wrapped_inside_is_refused(tmp_path: Path) -> None:
    draft = adapter()
    name = next(name for name in draft.tensors if "lora_B" in name)
    draft.tensors[name.replace("self_attn", "_orig_mod.self_attn")] = draft.tensors.pop(name)
    assert codes(check(draft, tmp_path).violations) == {"MIXED_NAMES"}


def test_a_pattern_that_matches_only_one_name_of_a_pair_is_ambiguous(tmp_path: Path) -> None:
    draft = adapter(key=KEY_VARIANTS["text model of a multimodal one"])
    draft.config["alpha_pattern"] = {"language_model.layers.0.self_attn.q_proj": 4}
    assert codes(check(draft, tmp_path).violations) == {"AMBIGUOUS_PATTERN"}


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj", "unembed_tokens"]])
def test_the_head_is_known_by_the_name_that_tinker_has_for_it(targets: object, tmp_path: Path) -> None:
    names: tuple[str, ...] = ("q_proj", "v_proj", "lm_head")
    if targets == "all-linear":
        names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
    plain, named = adapter(names), adapter(names)
    named.tensors = {n.replace("model.lm_head", "model.model.unembed_tokens"): t for n, t in named.tensors.items()}
    named.config["target_modules"] = targets
    assert check(named, tmp_path / "named").require() == check(plain, tmp_path / "plain").require()


def fused_base(**parts: tuple[str, int]) -> BaseSpec:
    """The base with some linears of each layer in the place of others, by the name of their block."""
    spec = base_spec()
    modules = [m for m in spec.modules if not any(block in m.path for block in parts)]
    for layer in (0, 1):
        for block, (leaf, num_out) in parts.items():
            path = f"model.layers.{layer}.{block}.{leaf}"
            modules.append(BaseModule(path, ModuleKind.LINEAR, HIDDEN, num_out))
    return replace(spec, model_type="other", modules=tuple(modules))


@pytest.mark.parametrize(
    ("base", "targets", "said"),
    [
        (fused_base(self_attn=("Wqkv", 16)), ("q_proj", "k_proj", "v_proj"), "self_attn.Wqkv"),
        (fused_base(self_attn=("query_key_value", 16)), ("q_proj", "v_proj"), "self_attn.query_key_value"),
        (fused_base(attention=("query_key_value", 16), self_attn=("x", 1)), ("q_proj",), "attention.query_key_value"),
    ],
)
def test_another_layout_is_named_and_is_no_other_base(
    base: BaseSpec, targets: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    violations = check(adapter(targets), tmp_path, base).violations
    assert codes(violations) == {"UNSUPPORTED_LAYOUT"}
    assert said in violations[0].message


@pytest.mark.parametrize("path", ["mlp.experts.3.w1", "block_sparse_moe.experts.0.w2", "mlp.experts.gate_up_proj"])
def test_experts_are_named_and_are_no_other_base(path: str, tmp_path: Path) -> None:
    draft = adapter(())
    draft.config["target_modules"] = ["w1", "w2", "gate_up_proj"]
    for role, shape in (("A", (RANK, HIDDEN)), ("B", (VOCAB, RANK))):
        name = f"base_model.model.model.layers.0.{path}.lora_{role}.weight"
        draft.tensors[name] = np.ones(shape, np.float32)
    violations = check(draft, tmp_path).violations
    assert codes(violations) == {"UNSUPPORTED_LAYOUT"}
    assert "experts" in violations[0].message


@pytest.mark.parametrize("wrapper", ["transformer.", "policy.model.", "llm.model.", "thinker.model.", "a.b.c.model."])
def test_a_wrapper_that_is_not_known_is_named_and_is_no_other_base(wrapper: str, tmp_path: Path) -> None:
    draft = adapter(key=lambda path, role: f"{wrapper}{path.removeprefix('model.')}.lora_{role}.weight")
    violations = check(draft, tmp_path).violations
    assert codes(violations) == {"UNSUPPORTED_NAME"}
    assert wrapper.removesuffix("model.") in violations[0].message


@pytest.mark.parametrize("tower", ["vision_tower.encoder.", "model.visual.", "audio_tower.", "model.vision_model."])
def test_towers_that_the_base_has_not_are_named_and_are_no_other_base(tower: str, tmp_path: Path) -> None:
    draft = adapter()
    more = {name.replace("model.layers", f"{tower}layers"): tensor for name, tensor in draft.tensors.items()}
    draft.tensors |= {name.replace("k.", "x."): tensor for name, tensor in more.items()}
    violations = check(draft, tmp_path).violations
    assert codes(violations) == {"UNKNOWN_MODULE"}
    assert "tower" in violations[0].message


@pytest.mark.parametrize("turned", ["AB", "A", "B"])
def test_transposed_parts_are_named_and_are_no_other_base(turned: str, tmp_path: Path) -> None:
    draft = adapter()
    draft.tensors = {
        name: np.ascontiguousarray(tensor.T) if any(f"lora_{role}" in name for role in turned) else tensor
        for name, tensor in draft.tensors.items()
    }
    violations = check(draft, tmp_path).violations
    assert codes(violations) == {"SHAPE_MISMATCH"}
    assert "transposed" in violations[0].message


@pytest.mark.parametrize(
    "name",
    [
        "lora_te_model_layers_0_self_attn_q_proj.lora_down.weight", "model.layers.0.self_attn.q_proj.lora_up.weight",
        "model.layers.0.self_attn.q_proj.adapter.linear_in.weight", "model.layers.0.self_attn.q_proj.alpha",
        "model.layers.0.self_attn.q_proj.lora_A.my.v1.weight", "global_step",
    ],
)  # fmt: skip
def test_names_of_other_formats_are_not_taken_for_parameters_of_the_base(name: str, tmp_path: Path) -> None:
    draft = adapter()
    draft.tensors[name] = np.ones((2, 2), np.float32)
    (violation,) = check(draft, tmp_path).violations
    assert violation.code == "UNSUPPORTED_TENSOR"
    assert "lora_A.weight" in violation.message
    assert "modules_to_save" not in violation.message


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (VOCAB + 1, f"row {VOCAB} are added"),
        (VOCAB + 3, f"rows {VOCAB} to {VOCAB + 2} are added"),
        (VOCAB - 2, f"rows {VOCAB - 2} to {VOCAB - 1} of the base's {VOCAB} are missing"),
    ],
)
def test_rows_that_a_copy_has_beyond_the_bases_are_named(rows: int, said: str, tmp_path: Path) -> None:
    spec = base_spec()
    digest = "sha256:" + "0" * 64
    spec = replace(spec, modules=tuple(replace(m, values_digest=digest) for m in spec.modules))
    draft = adapter()
    draft.tensors["base_model.model.lm_head.weight"] = np.zeros((rows, HIDDEN), np.float32)
    (violation,) = check(draft, tmp_path, spec).violations
    assert said in violation.message


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("num_added", [1, 5])
@pytest.mark.parametrize(("changed_row", "said"), [(None, "are unchanged"), (0, "other"), (VOCAB - 1, "other")])
def test_a_copy_with_added_rows_is_told_to_have_the_bases_own_rows_or_others(
    changed_row: int | None, said: str, num_added: int, dtype: type, tmp_path: Path
) -> None:
    values = np.random.default_rng(1).integers(-8, 8, (VOCAB + num_added, HIDDEN)).astype(np.float32)
    digest = "sha256:" + hashlib.sha256(values[:VOCAB].tobytes()).hexdigest()
    spec = base_spec()
    spec = replace(spec, modules=tuple(replace(m, values_digest=digest) for m in spec.modules))
    draft = adapter()
    if changed_row is not None:
        values[changed_row, 0] += 1
    draft.tensors["base_model.model.lm_head.weight"] = values.astype(dtype)
    (violation,) = check(draft, tmp_path, spec).violations
    assert f"rows 0 to {VOCAB - 1} of the copy" in violation.message
    assert said in violation.message


def mixture(blocks: str, names: tuple[str, ...]) -> BaseSpec:
    """The small base with experts in place of its dense linears."""
    spec = base_spec()
    kept = [module for module in spec.modules if ".mlp." not in module.path]
    for layer in range(2):
        for expert in range(2):
            for name in names:
                path = f"model.layers.{layer}.{blocks}.experts.{expert}.{name}"
                kept.append(BaseModule(path, ModuleKind.LINEAR, HIDDEN, HIDDEN))
    return replace(spec, modules=tuple(kept))


@pytest.mark.parametrize("others", [(), ("q_proj", "v_proj")])
@pytest.mark.parametrize(
    ("block", "names"),
    [("mlp", ("gate_proj", "up_proj", "down_proj")), ("block_sparse_moe", ("w1", "w2", "w3")), ("mlp", ("gate_up",))],
)
def test_a_dense_adapter_on_a_mixture_of_experts_is_told_what_differs(
    block: str, names: tuple[str, ...], others: tuple[str, ...], tmp_path: Path
) -> None:
    draft = adapter((*others, "gate_proj", "up_proj", "down_proj"))
    violations = check(draft, tmp_path, mixture(block, names)).violations
    assert codes(violations) == {"UNSUPPORTED_LAYOUT"}
    assert len(violations) == 6
    assert f"a mixture of experts, with model.layers.0.{block}.experts.0.{names[0]}" in violations[0].message


def test_a_module_that_the_base_has_not_is_told_with_those_in_its_place(tmp_path: Path) -> None:
    spec = base_spec()
    renamed = {"q_proj": "q_b_proj", "k_proj": "kv_a_proj_with_mqa", "v_proj": "kv_b_proj"}
    modules = (
        replace(m, path=m.path.removesuffix(m.name) + renamed[m.name]) if m.name in renamed else m for m in spec.modules
    )
    violations = check(adapter(), tmp_path, replace(spec, modules=tuple(modules))).violations
    assert codes(violations) == {"UNKNOWN_MODULE", "BASE_MODEL_MISMATCH"}
    place = "its model.layers.0.self_attn has kv_a_proj_with_mqa, o_proj, q_b_proj, kv_b_proj"
    assert sum(place in violation.message for violation in violations) == 3
