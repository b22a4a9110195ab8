"""Admission of checkpoints: what is normalised how, and every refusal with its violation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from peft import LoraConfig
from safetensors import safe_open

from hotslot.errors import (
    BaseModelMismatchError,
    InvalidAdapterError,
    QuotaExceededError,
    RankTooLargeError,
    UnsupportedAdapterError,
)
from store_service.admission import normalise
from store_service.admission.admit import Verdict, admit
from store_service.admission.config_fields import FIELDS
from store_service.admission.settings import AdmissionLimits
from tests.support.checkpoints import (
    HIDDEN,
    KEY_VARIANTS,
    RANK,
    TORCHTUNE_NAMES,
    Draft,
    adapter,
    base_spec,
    mlx_adapter,
    torchtune_adapter,
)
from tests.unit.store_service.admission.broken_checkpoints import CORPUS, Q0_A, Q0_B, Break

LIMITS = AdmissionLimits()


def check(draft: Draft, folder: Path, limits: AdmissionLimits = LIMITS) -> Verdict:
    return admit(draft.write(folder), base_spec(), limits)


def normalised(draft: Draft, folder: Path) -> tuple[Verdict, bytes]:
    written = bytearray()
    verdict = admit(draft.write(folder), base_spec(), LIMITS, written.extend)
    return verdict, bytes(written)


def tensors_of(draft: Draft, folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    verdict, data = normalised(draft, folder)
    assert verdict.violations == ()
    return safetensors.numpy.load(data)


@pytest.mark.parametrize(("change", "code"), CORPUS.values(), ids=CORPUS.keys())
def test_a_broken_checkpoint_is_refused_with_its_violation(change: Break, code: str, tmp_path: Path) -> None:
    draft = adapter()
    change(draft)
    verdict = check(draft, tmp_path)
    assert verdict.manifest is None
    assert code in {violation.code for violation in verdict.violations}
    assert all(v.message and v.subject for v in verdict.violations)


def test_the_corpus_is_large_enough() -> None:
    assert len(CORPUS) >= 60


def test_a_sound_checkpoint_is_admitted(tmp_path: Path) -> None:
    verdict = check(adapter(), tmp_path)
    assert verdict.violations == ()
    manifest = verdict.require()
    assert [module.path for module in manifest.modules] == [
        f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "v_proj")
    ]
    assert {module.scaling for module in manifest.modules} == {2.0}


def test_every_violation_is_reported_at_once(tmp_path: Path) -> None:
    draft = adapter()
    draft.config.update(use_dora=True, bias="all", unknown=1)
    draft.tensors[Q0_A][0, 0] = np.nan
    del draft.tensors[Q0_B]
    codes = [violation.code for violation in check(draft, tmp_path).violations]
    assert sorted(codes) == [
        "MISSING_TENSOR", "NOT_FINITE", "UNKNOWN_CONFIG_FIELD", "UNSUPPORTED_CONFIG", "UNSUPPORTED_CONFIG"
    ]  # fmt: skip


def test_violations_name_tensor_found_and_expected(tmp_path: Path) -> None:
    draft = adapter()
    draft.tensors[Q0_A] = np.ones((RANK, HIDDEN + 1), np.float32)
    (violation,) = check(draft, tmp_path).violations
    assert (violation.subject, violation.found, violation.expected) == (Q0_A, "[4, 9]", "[4, 8]")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("other_base", BaseModelMismatchError),
        ("rank", RankTooLargeError),
        ("dora", UnsupportedAdapterError),
        ("nan", InvalidAdapterError),
    ],
)
def test_the_kind_of_error_says_what_to_do(change: str, error: type[Exception], tmp_path: Path) -> None:
    draft, limits = adapter(), LIMITS
    match change:
        case "other_base":
            CORPUS["a base model of other sizes"][0](draft)
        case "rank":
            limits = AdmissionLimits(max_rank=RANK - 1)
        case "dora":
            draft.config["use_dora"] = True
        case "nan":
            draft.tensors[Q0_A][0, 0] = np.nan
    with pytest.raises(InvalidAdapterError) as caught:
        check(draft, tmp_path, limits).require()
    assert type(caught.value) is error


def test_too_many_violations_are_counted(tmp_path: Path) -> None:
    draft = adapter()
    draft.tensors.update({f"junk.{i}": np.ones(1, np.float32) for i in range(30)})
    violations = check(draft, tmp_path, AdmissionLimits(max_violations=10)).violations
    assert len(violations) == 11
    assert violations[-1].code == "TOO_MANY_VIOLATIONS"
    assert violations[-1].found == "20 more"


def test_every_field_of_the_installed_peft_is_decided() -> None:
    written = set(LoraConfig().to_dict())
    assert written - set(FIELDS) == set()
    assert all(rule.reason for rule in FIELDS.values())


def test_the_default_config_of_the_installed_peft_is_admitted(tmp_path: Path) -> None:
    draft = adapter()
    defaults = LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM").to_dict()
    draft.config = json.loads(json.dumps(defaults, default=list))
    assert check(draft, tmp_path).violations == ()


@pytest.mark.parametrize("variant", KEY_VARIANTS)
def test_trainers_variants_give_the_same_version(variant: str, tmp_path: Path) -> None:
    expected = check(adapter(), tmp_path / "plain").require()
    assert check(adapter(key=KEY_VARIANTS[variant]), tmp_path / "variant").require() == expected


def test_torchtunes_layout_is_converted_where_rows_keep_their_order(tmp_path: Path) -> None:
    expected = check(adapter(tuple(TORCHTUNE_NAMES)), tmp_path / "plain").require()
    assert check(torchtune_adapter(), tmp_path / "torchtune").require() == expected


def test_mlx_stores_transposed_and_names_its_factor(tmp_path: Path) -> None:
    assert check(mlx_adapter(), tmp_path / "mlx").require() == check(adapter(), tmp_path / "plain").require()


@pytest.mark.parametrize("alpha", [None, RANK, float(RANK)])
def test_an_alpha_of_mlx_that_means_the_same_in_every_version_is_taken(tmp_path: Path, alpha: float | None) -> None:
    draft = mlx_adapter()
    draft.config["lora_parameters"]["alpha"] = alpha
    assert check(draft, tmp_path / "mlx").require() == check(adapter(), tmp_path / "plain").require()


def test_the_normalised_blob_is_the_same_for_any_order_and_metadata(tmp_path: Path) -> None:
    draft = adapter()
    shuffled = draft.copy()
    shuffled.tensors = dict(reversed(shuffled.tensors.items()))
    shuffled.config = dict(reversed(shuffled.config.items()))
    assert normalised(draft, tmp_path / "a") == normalised(shuffled, tmp_path / "b")


def test_the_normalised_blob_is_this_one_to_the_byte(tmp_path: Path) -> None:
    """A change here makes every version's digest another: raise the format's number with it."""
    draft = adapter()
    draft.tensors = {
        name: (np.arange(value.size, dtype=np.float32) / 64).reshape(value.shape)
        for name, value in draft.tensors.items()
    }
    manifest = check(draft, tmp_path).require()
    assert manifest.weights_digest == "sha256:eeeab7c856868087005226eef80110fb1def454b2bf1cf69b8de651eb8bcf431"
    assert manifest.digest == "sha256:29be8b768b87539d53a8b2aa31c3763ebdef5be4ab537614863e8e2be03d3ee2"


def test_the_normalised_blob_is_in_layer_order_a_before_b(tmp_path: Path) -> None:
    _, data = normalised(adapter(("v_proj", "down_proj")), tmp_path)
    (tmp_path / "w").write_bytes(data)
    with safe_open(str(tmp_path / "w"), framework="np") as file:
        assert file.metadata() == {"format": "hotslot.weights/1"}
        assert list(file.offset_keys()) == [
            f"model.layers.{layer}.{module}.lora_{role}"
            for layer in (0, 1) for module in ("mlp.down_proj", "self_attn.v_proj") for role in "AB"
        ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_keep_their_type_and_bits(dtype: str, tmp_path: Path) -> None:
    draft = adapter()
    if dtype == "bfloat16":
        draft.tensors = {k: (v.view(np.uint32) >> 16).astype(np.uint16) for k, v in draft.tensors.items()}
    else:
        draft.tensors = {k: v.astype(dtype) for k, v in draft.tensors.items()}
    verdict, data = normalised(draft, tmp_path)
    assert verdict.require().dtype == {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    assert draft.tensors[Q0_A].tobytes() in data


def test_mixed_types_become_float32_exactly(tmp_path: Path) -> None:
    draft = adapter()
    draft.tensors[Q0_A] = draft.tensors[Q0_A].astype(np.float16)
    bits = (draft.tensors[Q0_B].view(np.uint32) >> 16).astype(np.uint16)
    draft.tensors[Q0_B] = bits
    found = tensors_of(draft, tmp_path)
    np.testing.assert_array_equal(
        found["model.layers.0.self_attn.q_proj.lora_A"], draft.tensors[Q0_A].astype(np.float32)
    )
    np.testing.assert_array_equal(
        found["model.layers.0.self_attn.q_proj.lora_B"].view(np.uint32), bits.astype(np.uint32) << 16
    )


def test_a_dry_run_names_the_digest_that_publishing_gives(tmp_path: Path) -> None:
    dry = check(adapter(), tmp_path / "a").require()
    verdict, data = normalised(adapter(), tmp_path / "b")
    assert verdict.require() == dry
    assert len(data) == dry.weights_size_bytes


def test_large_files_are_written_in_order_by_threads_and_give_the_same_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = normalised(adapter(), tmp_path / "a")
    monkeypatch.setattr(normalise, "OVERLAP_FROM_BYTES", 0)
    assert normalised(adapter(), tmp_path / "b") == expected


def test_a_failing_disk_ends_admission_of_a_large_file_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(data: bytes | memoryview) -> None:
        raise QuotaExceededError("the disk is full", subject="disk")

    monkeypatch.setattr(normalise, "OVERLAP_FROM_BYTES", 0)
    with pytest.raises(QuotaExceededError):
        admit(adapter().write(tmp_path), base_spec(), LIMITS, write)
