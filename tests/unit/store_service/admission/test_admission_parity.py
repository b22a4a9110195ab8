"""Admission against PEFT itself: what is admitted computes exactly what PEFT computes."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from safetensors.torch import load, save_file

from hotslot.formats.base_model import spec_from_folder
from store_service.admission.admit import Checkpoint, Verdict, admit
from store_service.admission.default_targets import DEFAULT_TARGETS
from store_service.admission.settings import AdmissionLimits

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
ARCHITECTURES: dict[str, tuple[type[Any], dict[str, Any], str, str]] = {
    # Architecture: config class, config, a projection of attention, a projection of the MLP.
    "llama": (transformers.LlamaConfig, SIZES, "q_proj", "down_proj"),
    "qwen3": (transformers.Qwen3Config, {**SIZES, "head_dim": 8}, "v_proj", "up_proj"),
    "gemma3": (transformers.Gemma3TextConfig, {**SIZES, "head_dim": 8, "sliding_window": 16}, "q_proj", "gate_proj"),
    "mistral": (transformers.MistralConfig, SIZES, "k_proj", "down_proj"),
    "phi": (transformers.PhiConfig, SIZES, "dense", "fc1"),
    "phi3": (transformers.Phi3Config, {**SIZES, "pad_token_id": 0, "eos_token_id": 1}, "qkv_proj", "gate_up_proj"),
    "gpt_neox": (
        transformers.GPTNeoXConfig,
        {k: v for k, v in SIZES.items() if k != "num_key_value_heads"},
        "query_key_value",
        "dense_4h_to_h",
    ),
    "gpt2": (transformers.GPT2Config, {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}, "c_attn", "c_fc"),
}


def options(attention: str, mlp: str) -> dict[str, dict[str, Any]]:
    """Every supported option, by name."""
    both = [attention, mlp]
    return {
        "a list": {"target_modules": both, "r": 4, "lora_alpha": 7},
        "a regex": {"target_modules": rf".*\.(0|2)\..*{attention}", "r": 5, "lora_alpha": 5},
        "all-linear": {"target_modules": "all-linear", "r": 2, "lora_alpha": 4},
        "rslora and patterns": {
            "target_modules": both, "r": 4, "lora_alpha": 16, "use_rslora": True,
            "rank_pattern": {mlp: 6, rf".*\.1\..*{attention}": 3},
            "alpha_pattern": {rf"^.*\.2\..*{attention}": 9, mlp: 5},
        },
        "some layers": {"target_modules": both, "r": 3, "lora_alpha": 1, "layers_to_transform": [0, 2]},
        "excluded modules": {"target_modules": both, "exclude_modules": rf".*\.1\..*{mlp}", "r": 8, "lora_alpha": 2},
        "orthogonal": {"target_modules": both, "r": 4, "lora_alpha": 4, "init_lora_weights": "orthogonal"},
        "biases": {"target_modules": both, "r": 4, "lora_alpha": 7, "lora_bias": True},
    }  # fmt: skip


def ends(embedding: str, attention: str) -> dict[str, dict[str, Any]]:
    """Options that target the two ends of the model, by name."""
    return {
        "the embedding": {"target_modules": [embedding, attention], "r": 4, "lora_alpha": 7},
        "the head": {"target_modules": [attention, "lm_head"], "r": 3, "lora_alpha": 5, "lora_bias": True},
        "both": {
            "target_modules": rf".*{embedding}|lm_head", "use_rslora": True, "r": 4,
            "rank_pattern": {"lm_head": 2, "embed_out": 2}, "alpha_pattern": {embedding: 3},
        },
    }  # fmt: skip


EMBEDDINGS = {"gpt_neox": "embed_in", "gpt2": "wte"}
"""Elsewhere it is embed_tokens."""


def make_base(architecture: str, folder: Path, *, is_tied: bool) -> None:
    config_class, config, _, _ = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_class(**config, tie_word_embeddings=is_tied))
    model.save_pretrained(folder)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    make_base(request.param, folder, is_tied=False)
    return request.param, folder


@pytest.fixture(scope="module", params=[name for name in ARCHITECTURES if name != "phi"])
def tied_base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(f"{request.param}-tied")
    make_base(request.param, folder, is_tied=True)
    return request.param, folder


@pytest.mark.parametrize("option", options("", ""))
def test_what_is_admitted_has_pefts_delta_weights(base: tuple[str, Path], option: str, tmp_path: Path) -> None:
    architecture, folder = base
    _, _, attention, mlp = ARCHITECTURES[architecture]
    check_against_peft(architecture, folder, options(attention, mlp)[option], tmp_path)


@pytest.mark.parametrize("said", ["all-linear", None])
def test_a_config_that_leaves_the_targets_to_peft_has_pefts_delta_weights(
    base: tuple[str, Path], said: str | None, tmp_path: Path
) -> None:
    architecture, folder = base
    config_class = ARCHITECTURES[architecture][0]
    if said is None and config_class.model_type not in DEFAULT_TARGETS:
        with pytest.raises(ValueError, match="Please specify `target_modules`"):
            check_against_peft(architecture, folder, {"target_modules": said}, tmp_path)
        return
    check_against_peft(architecture, folder, {"target_modules": said}, tmp_path, said={"target_modules": said})


def test_the_default_targets_are_those_of_the_installed_peft() -> None:
    ours = {name: found if isinstance(found, str) else list(found) for name, found in DEFAULT_TARGETS.items()}
    assert ours == TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING


@pytest.mark.parametrize("option", ends("", ""))
def test_adapters_on_embedding_and_head_have_pefts_delta_weights(
    base: tuple[str, Path], option: str, tmp_path: Path
) -> None:
    architecture, folder = base
    arguments = ends(EMBEDDINGS.get(architecture, "embed_tokens"), ARCHITECTURES[architecture][2])[option]
    check_against_peft(architecture, folder, arguments, tmp_path)


@pytest.mark.parametrize("option", ends("", ""))
def test_adapters_on_a_tied_pair_have_pefts_delta_weights(
    tied_base: tuple[str, Path], option: str, tmp_path: Path
) -> None:
    architecture, folder = tied_base
    arguments = ends(EMBEDDINGS.get(architecture, "embed_tokens"), ARCHITECTURES[architecture][2])[option]
    check_against_peft(architecture, folder, arguments, tmp_path)


@pytest.mark.parametrize("targets", [["lm_head", "q_proj"], ["embed_tokens"], ".*q_proj|lm_head"])
def test_one_adapter_on_a_tied_pair_has_pefts_delta_weights(targets: str | list[str], tmp_path: Path) -> None:
    make_base("llama", tmp_path / "base", is_tied=True)
    arguments = {"target_modules": targets, "r": 4, "ensure_weight_tying": True}
    check_against_peft("llama", tmp_path / "base", arguments, tmp_path / "adapter")


def test_a_tied_pair_whose_parts_differ_is_refused(tmp_path: Path) -> None:
    make_base("llama", tmp_path / "base", is_tied=True)
    arguments = {"target_modules": ["lm_head"], "r": 4, "ensure_weight_tying": True}
    verdict = admit_changed(tmp_path, arguments, lambda name, tensor: tensor + 1 if "lm_head" in name else tensor)
    assert {violation.code for violation in verdict.violations} == {"TIE_BROKEN"}


def test_a_pair_that_peft_would_not_tie_again_is_refused(tmp_path: Path) -> None:
    make_base("gpt2", tmp_path / "base", is_tied=True)
    verdict = admit_changed(tmp_path, {"target_modules": ["lm_head"], "r": 4, "ensure_weight_tying": True})
    assert {violation.code for violation in verdict.violations} == {"MODULE_NOT_TARGETED"}


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_copies_of_base_weights_are_left_out_and_changed_ones_refused(
    target: str, is_tied: bool, tmp_path: Path
) -> None:
    make_base("llama", tmp_path / "base", is_tied=is_tied)
    arguments = {"target_modules": [target], "r": 4}
    copies: list[str] = []

    def note(name: str, tensor: torch.Tensor) -> torch.Tensor:
        copies.extend([name] if "base_layer" in name else [])
        return tensor

    def touch(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if "base_layer" in name:
            tensor[33, 7] = torch.nextafter(tensor[33, 7], torch.tensor(1.0))
        return tensor

    def resize(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor[:1]]) if "base_layer" in name else tensor

    assert admit_changed(tmp_path, arguments, note).violations == ()
    assert len(copies) == 1
    for change in (touch, resize, lambda name, tensor: tensor.half() if "base_layer" in name else tensor):
        (violation,) = admit_changed(tmp_path, arguments, change).violations
        assert (violation.code, violation.subject) == ("UNSUPPORTED_TENSOR", copies[0])


def test_a_tied_heads_own_bias_cannot_be_compared_so_it_is_refused(tmp_path: Path) -> None:
    make_base("phi", tmp_path / "base", is_tied=True)
    (violation,) = admit_changed(tmp_path, {"target_modules": ["lm_head"]}).violations
    assert violation.code == "UNSUPPORTED_TENSOR"


def admit_changed(
    folder: Path,
    arguments: dict[str, Any],
    change: Callable[[str, torch.Tensor], torch.Tensor] = lambda _, tensor: tensor,
) -> Verdict:
    """Admit what PEFT makes for `folder / "base"`, every tensor changed by a function of its name."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    config = LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **arguments)
    get_peft_model(model, config).save_pretrained(folder / "adapter")
    weights = folder / "adapter" / "adapter_model.safetensors"
    save_file({name: change(name, tensor) for name, tensor in load(weights.read_bytes()).items()}, weights)
    files = {path.name: path for path in (folder / "adapter").iterdir()}
    return admit(Checkpoint(files), spec_from_folder(folder / "base", "tiny"), AdmissionLimits())


def check_against_peft(
    architecture: str, folder: Path, arguments: dict[str, Any], tmp_path: Path, said: dict[str, Any] | None = None
) -> None:
    """Make an adapter with PEFT, admit it, and compare with the same adapter as PEFT loads it freshly.

    What is `said` replaces what PEFT wrote into the config.
    """
    arguments = {"init_lora_weights": False, "task_type": "CAUSAL_LM", **arguments}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(1)
    get_peft_model(model, LoraConfig(**arguments)).save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | (said or {})))
    fresh = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    peft_model = PeftModel.from_pretrained(fresh, str(tmp_path))

    written = bytearray()
    names = ("adapter_config.json", "adapter_model.safetensors")
    checkpoint = Checkpoint({name: tmp_path / name for name in names})
    verdict = admit(checkpoint, spec_from_folder(folder, architecture), AdmissionLimits(), written.extend)
    assert verdict.violations == ()
    manifest, tensors = verdict.require(), load(bytes(written))

    expected = {
        re.sub(r"^base_model\.model\.", "", name): module
        for name, module in peft_model.named_modules()
        if isinstance(module, LoraLayer) and ("default" in module.lora_A or "default" in module.lora_embedding_A)
    }
    # The checkpoint's own name of GPT-NeoX's head, which transformers renames.
    paths = {module.path: re.sub("^embed_out$", "lm_head", module.path) for module in manifest.modules}
    assert set(paths.values()) == set(expected)
    for module in manifest.modules:
        layer = expected[paths[module.path]]
        ours = module.scaling * tensors.pop(f"{module.path}.lora_B") @ tensors.pop(f"{module.path}.lora_A")
        theirs = layer.get_delta_weight("default")
        if layer.fan_in_fan_out or "default" in layer.lora_embedding_A:
            theirs = theirs.T  # PEFT gives it as the layer stores its weight, inputs first
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        assert module.has_bias == layer.lora_bias["default"]
        if module.has_bias:
            torch.testing.assert_close(tensors.pop(f"{module.path}.lora_B.bias"), layer.lora_B["default"].bias)
    assert not tensors


@pytest.mark.parametrize(
    ("option", "code"),
    [
        ({"use_dora": True}, "UNSUPPORTED_CONFIG"),
        ({"bias": "lora_only"}, "UNSUPPORTED_CONFIG"),
        ({"bias": "all"}, "UNSUPPORTED_TENSOR"),
        ({"modules_to_save": ["up_proj"]}, "UNSUPPORTED_CONFIG"),
        ({"modules_to_save": ["norm"]}, "UNSUPPORTED_TENSOR"),
        ({"init_lora_weights": "pissa"}, "UNSUPPORTED_CONFIG"),
        ({"init_lora_weights": "olora"}, "UNSUPPORTED_CONFIG"),
        ({"trainable_token_indices": [1, 2]}, "UNSUPPORTED_CONFIG"),
        ({"alora_invocation_tokens": [1]}, "UNSUPPORTED_CONFIG"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else value,
)
def test_what_peft_saves_with_an_unsupported_option_is_refused(
    option: dict[str, Any], code: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, attention_bias=True))
    model.save_pretrained(tmp_path / "base")
    arguments = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **option}
    get_peft_model(model, LoraConfig(**arguments)).save_pretrained(tmp_path / "adapter")
    files = {path.name: path for path in (tmp_path / "adapter").iterdir()}
    spec = spec_from_folder(tmp_path / "base", "tiny")
    verdict = admit(Checkpoint(files), spec, AdmissionLimits())
    assert code in {violation.code for violation in verdict.violations}


def test_pissa_converted_when_it_was_saved_is_admitted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa", task_type="CAUSAL_LM")
    peft_model = get_peft_model(model, config)
    peft_model.peft_config["default"].init_lora_weights = True
    peft_model.save_pretrained(tmp_path / "initial")
    peft_model.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.01)
    peft_model.save_pretrained(
        tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "initial")
    )
    files = {path.name: path for path in (tmp_path / "converted").iterdir()}
    verdict = admit(Checkpoint(files), spec_from_folder(tmp_path / "base", "tiny"), AdmissionLimits())
    assert verdict.violations == ()
    assert verdict.require().max_rank == 8
