"""Adapters on parts for a base that has them as one, and the reverse: any mixture, in slices, or refused clearly."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load

from hotslot.errors import InvalidAdapterError, RankTooLargeError, UnsupportedAdapterError
from hotslot.formats.base_details import BaseDetails, details_from_json
from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
from hotslot.formats.loaded_modules import attention_numbers
from hotslot.formats.safetensors_header import Header, HeaderLimits, parse_header
from store_service.admission import slices
from store_service.admission.admit import Verdict, admit
from store_service.admission.fitting import fits
from store_service.admission.settings import AdmissionLimits
from tests.support.checkpoints import (
    HIDDEN,
    INTERMEDIATE,
    KV,
    TORCHTUNE_NAMES,
    Array,
    Draft,
    adapter,
    base_spec,
    fused_base_spec,
    mlx_adapter,
    torchtune_adapter,
    weights_file,
)

PARTS = {"qkv_proj": {"q_proj": HIDDEN, "k_proj": KV, "v_proj": KV}, "gate_up_proj": dict.fromkeys(
    ("gate_proj", "up_proj"), INTERMEDIATE)}  # fmt: skip
ATTENTION = ("q_proj", "k_proj", "v_proj")
Deltas = dict[str, tuple[Array, Array]]


def served(draft: Draft, folder: Path, base: BaseSpec, limits: AdmissionLimits | None = None) -> tuple[Verdict, bytes]:
    blob = bytearray()
    return admit(draft.write(folder), base, limits or AdmissionLimits(), blob.extend), bytes(blob)


def deltas_of(tensors: dict[str, Array], scaling: Callable[[str], float], a: str, b: str, bias: str) -> Deltas:
    """Each module's change of its weight and of its bias, exactly enough in double precision."""
    found = {}
    for name in (name for name in tensors if name.endswith(a)):
        path = name.removesuffix(a)
        a_matrix, b_matrix = tensors[name].astype(np.float64), tensors[path + b].astype(np.float64)
        own = tensors.get(path + bias, np.zeros(len(b_matrix))).astype(np.float64)
        bare = path.removeprefix("base_model.model.")
        found[bare] = scaling(bare) * (b_matrix @ a_matrix), scaling(bare) * own
    return found


def in_parts(deltas: Deltas) -> Deltas:
    """The same changes by the parts, without those that change nothing."""
    found: Deltas = {}
    for path, (delta, bias) in deltas.items():
        parent, _, leaf = path.rpartition(".")
        begin = 0
        for part, size in PARTS.get(leaf, {leaf: len(delta)}).items():
            rows = slice(begin, begin + size)
            if delta[rows].any() or bias[rows].any():
                found[f"{parent}.{part}"] = delta[rows], bias[rows]
            begin += size
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mixture_changes_the_same_rows_by_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    is_fused = data.draw(st.booleans(), label="trained on fused linears")
    trainers, base = (fused_base_spec(), base_spec()) if is_fused else (base_spec(), fused_base_spec())
    known = ["qkv_proj", "gate_up_proj"] if is_fused else [*ATTENTION, "gate_proj", "up_proj"]
    leaves = data.draw(st.lists(st.sampled_from([*known, "o_proj", "down_proj"]), min_size=1, unique=True))
    draft = adapter(tuple(leaves), spec=trainers, seed=data.draw(st.integers(0, 9)))
    ranks, exponents = ({leaf: data.draw(numbers) for leaf in leaves} for numbers in (st.integers(1, 5), EXPONENTS))
    alphas = {leaf: 3 * ranks[leaf] * 2.0 ** exponents[leaf] for leaf in leaves}
    draft.config |= {"rank_pattern": ranks, "alpha_pattern": alphas, "lora_bias": data.draw(st.booleans())}
    for name in list(draft.tensors):
        rank = next(ranks[leaf] for leaf in leaves if f".{leaf}." in name)
        tensor = draft.tensors[name]
        shape = (rank, tensor.shape[1]) if "lora_A" in name else (tensor.shape[0], rank)
        values = np.resize(tensor, shape)
        match data.draw(st.sampled_from(["F32", "F16", "BF16"])):
            case "F16":
                values = values.astype(np.float16)
            case "BF16":
                values = (values.view(np.uint32) >> 16).astype(np.uint16)
        draft.tensors[name] = values
        if draft.config["lora_bias"] and "lora_B" in name:
            draft.tensors[name.replace("weight", "bias")] = np.arange(1, len(values) + 1, dtype=np.float32)
    monkeypatch.setattr(slices, "SLICE_BYTES", data.draw(st.sampled_from([16, 100, 4096]), label="slices"))
    verdict, blob = served(draft, tmp_path, base)
    manifest = verdict.require()
    stored = {n: _floats(t) for n, t in draft.tensors.items()}
    given_deltas = deltas_of(
        stored, lambda path: 3 * 2.0 ** exponents[path.rpartition(".")[2]], ".lora_A.weight", ".lora_B.weight",
        ".lora_B.bias",
    )  # fmt: skip
    scalings = {module.path: module.scaling for module in manifest.modules}
    found = deltas_of(_loaded(blob, manifest.dtype), scalings.__getitem__, ".lora_A", ".lora_B", ".lora_B.bias")
    expected, found = in_parts(given_deltas), in_parts(found)
    assert found.keys() == expected.keys()
    for path, tensors in expected.items():
        for ours, theirs in zip(found[path], tensors, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    order = [module.path for module in base.modules]
    assert [module.path for module in manifest.modules] == [path for path in order if path in scalings]


EXPONENTS = st.integers(-3, 4)


def _floats(tensor: Array) -> Array:
    return (tensor.astype(np.uint32) << 16).view(np.float32) if tensor.dtype == np.uint16 else tensor


def _loaded(blob: bytes, dtype: str) -> dict[str, Array]:
    if dtype != "BF16":
        return dict(load(blob))
    size = 8 + int.from_bytes(blob[:8], "little")
    as_integers = blob[:8] + blob[8:size].replace(b'"BF16"', b'"U16" ') + blob[size:]
    return {name: _floats(tensor) for name, tensor in load(as_integers).items()}


def test_parts_of_mlx_and_torchtune_mean_the_same(tmp_path: Path) -> None:
    base = fused_base_spec()
    plain, _ = served(adapter(), tmp_path / "plain", base)
    mlx, _ = served(mlx_adapter(), tmp_path / "mlx", base)
    assert mlx.require().weights_digest == plain.require().weights_digest
    names = tuple(TORCHTUNE_NAMES)
    torchtune, _ = served(torchtune_adapter(), tmp_path / "torchtune", base)
    assert torchtune.require() == served(adapter(names), tmp_path / "names", base)[0].require()


@pytest.mark.parametrize("alpha", [12, 8.5, 2.0**40])
def test_scalings_that_no_power_of_two_tells_apart_are_refused_with_both(alpha: float, tmp_path: Path) -> None:
    draft = adapter()
    draft.config["alpha_pattern"] = {"v_proj": alpha}
    verdict, _ = served(draft, tmp_path, fused_base_spec())
    assert {violation.code for violation in verdict.violations} == {"UNSUPPORTED_LAYOUT"}
    message = verdict.violations[0].message
    assert f"scalings q_proj 2, v_proj {alpha / 4:g}" in message
    assert "self_attn.qkv_proj" in message
    with pytest.raises(UnsupportedAdapterError):
        verdict.require()


def test_a_sum_of_ranks_beyond_the_largest_is_refused_with_the_ranks(tmp_path: Path) -> None:
    limits = AdmissionLimits(max_rank=11)
    assert served(adapter(), tmp_path / "two", fused_base_spec(), limits)[0].require().max_rank == 8
    verdict, _ = served(adapter(ATTENTION), tmp_path / "three", fused_base_spec(), limits)
    with pytest.raises(RankTooLargeError, match=r"sum of its parts' ranks \(q_proj 4, k_proj 4, v_proj 4\)"):
        verdict.require()


def test_what_an_older_version_registered_is_to_be_registered_again(tmp_path: Path) -> None:
    for details in (None, BaseDetails(layers={"num_hidden_layers": 2})):
        verdict, _ = served(adapter(), tmp_path, replace(fused_base_spec(), details=details))
        assert {violation.code for violation in verdict.violations} == {"UNSUPPORTED_LAYOUT"}
        assert "register it again" in verdict.violations[0].message
        served(adapter(("gate_proj", "up_proj")), tmp_path, replace(fused_base_spec(), details=details))[0].require()


HEADS = attention_numbers({"num_attention_heads": 4, "hidden_size": HIDDEN})
"""As many for keys as for queries, which the fused base has not."""


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (replace(fused_base_spec(), model_type="codegen"), "the rows of a codegen's qkv_proj is not known"),
        (replace(fused_base_spec(), details=BaseDetails(attention=HEADS)), "16 rows, and the base's heads 24"),
    ],
    ids=["another type", "other rows"],
)
def test_rows_that_are_not_known_are_refused_as_such(base: BaseSpec, said: str, tmp_path: Path) -> None:
    verdict, _ = served(adapter(), tmp_path, base)
    assert {violation.code for violation in verdict.violations} == {"UNSUPPORTED_LAYOUT"}
    assert said in verdict.violations[0].message


@pytest.mark.parametrize("base", [base_spec(), fused_base_spec()], ids=["apart", "as one"])
def test_one_projection_in_both_forms_is_refused(base: BaseSpec, tmp_path: Path) -> None:
    draft = adapter(("qkv_proj",), spec=fused_base_spec())
    draft.tensors |= adapter(("q_proj",)).tensors
    draft.config["target_modules"] = ["q_proj", "qkv_proj"]
    verdict, _ = served(draft, tmp_path, base)
    assert {violation.code for violation in verdict.violations} == {"UNSUPPORTED_LAYOUT"}
    assert any("both as one linear and apart" in violation.message for violation in verdict.violations)


def test_what_is_wrong_with_parts_is_told_by_the_trainers_names(tmp_path: Path) -> None:
    draft = adapter(ATTENTION)
    cut = "base_model.model.model.layers.1.self_attn.k_proj.lora_"
    draft.tensors = {name: tensor for name, tensor in draft.tensors.items() if not name.startswith(cut)}
    bad = "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"
    draft.tensors[bad] = np.zeros((KV + 1, 4), np.float32)
    verdict, _ = served(draft, tmp_path, fused_base_spec())
    found = {(violation.code, violation.subject) for violation in verdict.violations}
    assert found == {("MODULE_MISSING", "model.layers.1.self_attn.k_proj"), ("SHAPE_MISMATCH", bad)}


@pytest.mark.parametrize("is_fused", [False, True])
def test_values_that_are_not_finite_are_counted_once(is_fused: bool, tmp_path: Path) -> None:
    trainers, base = (fused_base_spec(), base_spec()) if is_fused else (base_spec(), fused_base_spec())
    draft = adapter(("qkv_proj",) if is_fused else ("q_proj",), spec=trainers)
    name_a, name_b = list(draft.tensors)[:2]
    draft.tensors[name_a][0, 0] = np.nan
    draft.tensors[name_b][[0, -1], 0] = np.inf
    with pytest.raises(InvalidAdapterError) as caught:
        served(draft, tmp_path, base)[0].require()
    found = [(violation.subject, violation.found.split()[0]) for violation in caught.value.violations]
    assert found == [(name_a, "1"), (name_b, "2")]


def test_a_product_that_f16_does_not_hold_is_exact(tmp_path: Path) -> None:
    draft = adapter()
    draft.config["alpha_pattern"] = {"v_proj": 64}
    draft.tensors = {name: np.full_like(tensor, 40_000, np.float16) for name, tensor in draft.tensors.items()}
    verdict, blob = served(draft, tmp_path, fused_base_spec())
    assert verdict.require().dtype == "F32"
    assert load(blob)["model.layers.0.self_attn.qkv_proj.lora_B"].max() == 8 * 40_000


def header_of(draft: Draft) -> Header:
    file = weights_file(draft.tensors)
    return parse_header(file, len(file), "a", HeaderLimits())


def test_a_base_of_the_other_form_fits() -> None:
    assert fits(header_of(adapter(("qkv_proj", "o_proj"), spec=fused_base_spec())), base_spec())
    split = header_of(adapter(("q_proj", "o_proj")))
    assert fits(split, fused_base_spec())
    assert not fits(split, replace(fused_base_spec(), model_type="other"))


def test_memory_does_not_follow_the_size_of_what_is_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The B of the fused linear is 48 MiB, most of it zeros."""
    monkeypatch.setattr(slices, "SLICE_BYTES", 64 * 1024)
    monkeypatch.setattr(slices, "BLOCK_BYTES", 512 * 1024)
    rows, path = 2**14, "model.layers.0.mlp."
    kind = ModuleKind.LINEAR
    fused = BaseSpec("acme/tall", "phi3", "f", (BaseModule(path + "gate_up_proj", kind, 8, 2 * rows),))
    parts = tuple(BaseModule(path + name, kind, 8, rows) for name in ("gate_proj", "up_proj"))
    draft = adapter(("gate_proj", "up_proj"), spec=BaseSpec("acme/tall", "llama", "f", parts), rank=1)
    draft.config |= {"rank_pattern": {"up_proj": 255}, "alpha_pattern": {"up_proj": 255 * 2.0**-6 * 8}}
    up = f"base_model.model.{path}up_proj.lora_"
    draft.tensors[f"{up}A.weight"] = np.ones((255, 8), np.float16)
    draft.tensors[f"{up}B.weight"] = np.ones((rows, 255), np.float16)
    checkpoint, size = draft.write(tmp_path), 0
    del draft

    def write(data: bytes | memoryview) -> None:
        nonlocal size
        size += len(data)

    tracemalloc.start()
    try:
        manifest = admit(checkpoint, fused, AdmissionLimits(max_rank=256), write).require()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == manifest.weights_size_bytes > 2 * rows * 256 * 4
    assert peak_bytes < 4 * 2**20


def test_numbers_of_heads_travel_with_a_base_models_details() -> None:
    numbers = attention_numbers({"text_config": {"num_attention_heads": 8, "head_dim": 4, "num_key_value_heads": 2}})
    newer = BaseDetails(attention=numbers)
    assert details_from_json(newer.to_json()) == newer
    assert newer.says_more_than(BaseDetails())
    assert not BaseDetails().says_more_than(newer)
    assert attention_numbers({"num_attention_heads": 4, "hidden_size": 32}) == {
        "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8,
    }  # fmt: skip
    for config in ({}, {"num_attention_heads": 0}, {"num_attention_heads": 4}, {"num_attention_heads": "4"}):
        assert attention_numbers(config) == {}
