"""Words of a config that no method reads: admitted with a warning, as PEFT drops them; methods' own stay refused."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from store_service.admission.admit import Verdict, admit
from store_service.admission.config import parse_config
from store_service.admission.config_fields import FIELDS, Unlisted, judge_unlisted
from store_service.admission.settings import AdmissionLimits
from store_service.admission.training_words import METADATA_WORDS, TRAINING_WORDS
from tests.support.checkpoints import Draft, adapter, base_spec, mlx_adapter, weights_file

WRITTEN: dict[str, Any] = {
    "_name_or_path": "acme/tiny",
    "_commit_hash": "0" * 40,
    "author": "somebody",
    "library_name": "peft",
    "license": "apache-2.0",
    "model-index": [{"name": "x", "results": [1]}],
    "model_type": "llama",
    "tags": ["lora", "sft"],
    "transformers_version": "4.57.1",
}
"""Words as hubs and trainers write them."""
NEWER: dict[str, Any] = {
    "use_newera": False,
    "newera_config": None,
    "newera_layers": [],
    "newera_init": "",
    "newera_rank": 0,
    "newera": {"rank": 0, "on": False, "inner": {"x": None}},
}
"""Fields of a PEFT to come, unset."""
METHODS: dict[str, Any] = {
    "newera_config": {"rank": 4},
    "newera_layers": [0],
    "use_newera": True,
    "newera": {"on": False, "rank": 4},
    "decompose_both": True,
    "oft_block_size": 32,
    "projection_prng_key": 3,
    "target_r": 8,
}
"""Fields of other methods, and of one to come."""


def check(draft: Draft, folder: Path) -> Verdict:
    return admit(draft.write(folder), base_spec(), AdmissionLimits())


@pytest.mark.parametrize("draft", [adapter(), mlx_adapter()], ids=["PEFT's", "mlx-lm's"])
@pytest.mark.parametrize("words", [WRITTEN, NEWER], ids=["metadata", "newer fields, unset"])
def test_words_that_no_method_reads_are_admitted_and_named(words: dict[str, Any], draft: Draft, tmp_path: Path) -> None:
    expected = check(draft, tmp_path / "plain")
    changed = draft.copy()
    changed.config.update(words)
    verdict = check(changed, tmp_path / "words")
    assert verdict.require() == expected.require()
    assert [warning.code for warning in verdict.warnings] == ["CONFIG_FIELDS_NOT_USED"]
    assert all(repr(name) in verdict.warnings[0].message for name in words)
    assert expected.warnings == ()


@pytest.mark.parametrize("draft", [adapter(), mlx_adapter()], ids=["PEFT's", "mlx-lm's"])
@pytest.mark.parametrize("name", METHODS)
def test_a_field_of_a_method_is_a_violation_that_names_it(name: str, draft: Draft, tmp_path: Path) -> None:
    changed = draft.copy()
    changed.config[name] = METHODS[name]
    (violation,) = check(changed, tmp_path).violations
    assert (violation.code, violation.subject) == ("UNKNOWN_CONFIG_FIELD", name)


def test_no_word_of_metadata_is_a_field_of_any_method_of_the_installed_peft() -> None:
    methods = {field.name for config in PEFT_TYPE_TO_CONFIG_MAPPING.values() for field in dataclasses.fields(config)}
    assert METADATA_WORDS & methods == set()
    assert METADATA_WORDS & (FIELDS.keys() | TRAINING_WORDS) == set()
    assert not [name for name in methods if name.startswith("_") and name in LoraConfig().to_dict()]


@given(name=st.sampled_from(sorted({*METADATA_WORDS, *WRITTEN, *NEWER})), value=st.sampled_from([None, "x", 3, ["x"]]))
def test_peft_drops_what_is_admitted(name: str, value: Any) -> None:
    value = NEWER.get(name, value)
    plain = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    assert judge_unlisted(name, value) is Unlisted.TELL
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert PeftConfig.from_peft_type(**plain, **{name: value}) == PeftConfig.from_peft_type(**plain)


def test_the_warning_is_bounded_whatever_the_config_has() -> None:
    config = {**adapter().config, **{"_" + letter * 5_000: 1 for letter in "abcdefghijklmnopqrstuvwxyz"}}
    read = parse_config(json.dumps(config).encode())
    assert read.settings is not None
    assert len(read.warnings[0].message) < 1_000
    assert "14 more" in read.warnings[0].message


@pytest.mark.parametrize("parameters", [None, [], "rank 8", 8, False])
def test_parameters_of_mlx_that_are_no_object_are_one_violation(parameters: Any, tmp_path: Path) -> None:
    draft = mlx_adapter()
    draft.config["lora_parameters"] = parameters
    (violation,) = check(draft, tmp_path).violations
    assert (violation.code, violation.subject) == ("BAD_CONFIG_VALUE", "lora_parameters")


def test_magnitudes_that_mlx_writes_are_named_as_those_of_dora(tmp_path: Path) -> None:
    draft = mlx_adapter()
    paths = {name.rpartition(".")[0] for name in draft.tensors}
    draft.tensors |= {f"{path}.m": np.ones(8, np.float32) for path in paths}
    draft.extra_files["adapters.safetensors"] = weights_file(draft.tensors)
    violations = check(draft, tmp_path).violations
    assert {violation.subject for violation in violations} == {f"{path}.m" for path in paths}
    assert {(violation.code, violation.found) for violation in violations} == {("UNSUPPORTED_TENSOR", "DoRA magnitude")}


@pytest.mark.parametrize("flags", ["i", "s", "ix", "a"])
@pytest.mark.parametrize("field", ["alpha_pattern", "rank_pattern", "layers_pattern"])
def test_flags_where_peft_cannot_have_them_are_refused_with_what_to_write(
    field: str, flags: str, tmp_path: Path
) -> None:
    def written(text: str) -> Draft:
        draft = adapter()
        draft.config[field] = text if field == "layers_pattern" else {text: 4}
        if field == "layers_pattern":
            draft.config["layers_to_transform"] = [0, 1]
        return draft

    name = "layers" if field == "layers_pattern" else "q_proj"
    (violation,) = check(written(f"(?{flags}){name}"), tmp_path / "wrong").violations
    assert violation.code == "UNSUPPORTED_PATTERN"
    assert f"write '(?{flags}:{name})'" in violation.message
    assert check(written(f"(?{flags}:{name})"), tmp_path / "right").violations == ()


def test_flags_before_an_expression_that_peft_matches_as_it_is_are_admitted(tmp_path: Path) -> None:
    draft = adapter()
    draft.config["target_modules"] = "(?i).*(Q|V)_PROJ"
    assert check(draft, tmp_path).violations == ()
