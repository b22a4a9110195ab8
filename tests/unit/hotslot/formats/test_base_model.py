"""A model folder's spec: what is read from it, what is refused, and what its digest depends on."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hotslot.errors import InvalidRequestError
from hotslot.formats.base_model import spec_from_folder
from hotslot.formats.base_spec import BaseSpec, ModuleKind
from hotslot.ids import digest_of


def model_folder(folder: Path, tensors: dict[str, np.ndarray], model_type: str = "llama") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    save_file(tensors, str(folder / "model.safetensors"))
    return folder


def tiny(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tensors = {
        "model.embed_tokens.weight": rng.random((11, 4), np.float32),
        "model.norm.weight": rng.random(4, np.float32),
        "lm_head.weight": rng.random((11, 4), np.float32),
    }
    for layer in (0, 2, 10):
        tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] = rng.random((6, 4), np.float32)
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = rng.random(4, np.float32)
        tensors[f"model.layers.{layer}.self_attn.q_proj.bias"] = rng.random(6, np.float32)
    return tensors


def test_modules_come_as_embeddings_then_layers_by_number_then_the_head(tmp_path: Path) -> None:
    spec = spec_from_folder(model_folder(tmp_path / "m", tiny()), "acme/tiny")
    assert [(m.path, m.kind.value, m.in_features, m.out_features) for m in spec.modules] == [
        ("model.embed_tokens", "embedding", 11, 4),
        ("model.layers.0.self_attn.q_proj", "linear", 4, 6),
        ("model.layers.2.self_attn.q_proj", "linear", 4, 6),
        ("model.layers.10.self_attn.q_proj", "linear", 4, 6),
        ("lm_head", "linear", 4, 11),
    ]


def test_shards_give_the_digest_of_the_single_file(tmp_path: Path) -> None:
    whole = spec_from_folder(model_folder(tmp_path / "whole", tiny()), "a")
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "config.json").write_text('{"model_type": "llama"}')
    weight_map = {}
    for index, (name, tensor) in enumerate(tiny().items()):
        save_file({name: tensor}, str(shards / f"model-{index}.safetensors"))
        weight_map[name] = f"model-{index}.safetensors"
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert spec_from_folder(shards, "b").digest == whole.digest


def test_other_weights_of_the_same_shape_give_another_digest(tmp_path: Path) -> None:
    first = spec_from_folder(model_folder(tmp_path / "a", tiny(0)), "a")
    second = spec_from_folder(model_folder(tmp_path / "b", tiny(1)), "a")
    assert first.modules == second.modules
    assert first.digest != second.digest


def test_the_sample_covers_both_ends_of_a_large_tensor(tmp_path: Path) -> None:
    def digest_with(index: int) -> str:
        weights = np.zeros((64, 64), np.float32)
        weights.flat[index] = 1
        tensors = {"model.layers.0.q_proj.weight": weights}
        return spec_from_folder(model_folder(tmp_path / f"m{index}", tensors), "a").digest

    assert len({digest_with(0), digest_with(511), digest_with(4095), digest_with(4095 - 511)}) == 4


def test_a_head_without_a_weight_of_its_own_is_a_target_but_no_part_of_the_digest(tmp_path: Path) -> None:
    untied = spec_from_folder(model_folder(tmp_path / "untied", tiny()), "a")
    tensors = {name: tensor for name, tensor in tiny().items() if name != "lm_head.weight"}
    tied = spec_from_folder(model_folder(tmp_path / "tied", tensors), "a")
    assert untied.tied_head is None
    assert untied.targets == untied.modules
    assert tied.tied_head == untied.head
    assert tied.targets == (*tied.modules, untied.head)
    assert b"lm_head" not in tied.canonical_json()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_values_have_one_digest_whatever_type_holds_them(dtype: str, tmp_path: Path) -> None:
    def spec_with(name: str, dtype: str) -> BaseSpec:
        values = np.arange(44, dtype=dtype).reshape(11, 4) / 8
        return spec_from_folder(model_folder(tmp_path / name, tiny() | {"lm_head.weight": values}), "a")

    plain, other = spec_with("plain", "float32"), spec_with("other", dtype)
    digests = [spec.head.values_digest for spec in (plain, other) if spec.head is not None]
    assert digests == [digest_of((np.arange(44, dtype="<f4") / 8).tobytes())] * 2
    assert [module.path for module in plain.modules if module.values_digest] == ["model.embed_tokens", "lm_head"]


def test_gpt2_layers_are_stored_input_first(tmp_path: Path) -> None:
    tensors = {
        "h.0.attn.c_attn.weight": np.zeros((4, 12), np.float32),
        "wte.weight": np.zeros((9, 4), np.float32),
    }
    spec = spec_from_folder(model_folder(tmp_path / "m", tensors, "gpt2"), "gpt2")
    assert [(m.in_features, m.out_features) for m in spec.modules] == [(9, 4), (4, 12)]


@pytest.mark.parametrize("problem", ["no config", "no weights", "no layers", "bad index", "truncated", "bad json"])
def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, problem: str) -> None:
    folder = model_folder(tmp_path / "m", tiny())
    weights = folder / "model.safetensors"
    match problem:
        case "no config":
            (folder / "config.json").unlink()
        case "no weights":
            weights.unlink()
        case "no layers":
            save_file({"x": np.zeros(3, np.float32)}, str(weights))
        case "bad index":
            weights.unlink()
            (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "bad json":
            (folder / "config.json").write_text("{")
    with pytest.raises(InvalidRequestError, match="is not a base model"):
        spec_from_folder(folder, "a")


@pytest.mark.model
def test_the_real_model_has_seven_linears_in_each_of_thirty_layers() -> None:
    folder = Path.home() / ".cache/hotslot/models/SmolLM2-135M-Instruct"
    if not (folder / "config.json").is_file():
        pytest.skip("the model has not been converted yet")
    spec = spec_from_folder(folder, "HuggingFaceTB/SmolLM2-135M-Instruct")
    linears = [m for m in spec.modules if m.kind is ModuleKind.LINEAR]
    assert len(linears) == 7 * 30
    by_path = spec.by_path()
    assert by_path["model.layers.29.mlp.down_proj"].in_features == 1536
    assert by_path["model.layers.29.mlp.down_proj"].out_features == 576
    assert "lm_head" not in {module.path for module in spec.modules}
    assert (by_path["lm_head"].in_features, by_path["lm_head"].out_features) == (576, 49152)
    assert spec.digest == "sha256:827119370f7e9538ebdccd326f4ad901157c00efb5d071a696dabf472e1a4ea3"
    with (folder / "model.safetensors").open("rb") as file:
        assert struct.unpack("<Q", file.read(8))[0] < 100_000


@pytest.mark.parametrize(("given", "name"), [("./m/", "./m"), ("m//", "m"), ("acme/tiny", "acme/tiny"), ("/", "/")])
def test_a_slash_behind_a_folders_name_is_no_part_of_the_models_name(given: str, name: str, tmp_path: Path) -> None:
    assert spec_from_folder(model_folder(tmp_path / "m", tiny()), given).name == name
