"""Admission against PEFT itself: what is admitted computes exactly what PEFT computes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load

from shared.base_model import spec_from_folder
from store_service.admission.admit import Checkpoint, admit
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
    }  # fmt: skip


@pytest.fixture(scope="module", params=ARCHITECTURES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    config_class, config, _, _ = ARCHITECTURES[request.param]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_class(**config, tie_word_embeddings=False))
    model.save_pretrained(folder)
    return request.param, folder


@pytest.mark.parametrize("option", options("", ""))
def test_what_is_admitted_has_pefts_delta_weights(base: tuple[str, Path], option: str, tmp_path: Path) -> None:
    architecture, folder = base
    _, _, attention, mlp = ARCHITECTURES[architecture]
    arguments = {"init_lora_weights": False, "task_type": "CAUSAL_LM", **options(attention, mlp)[option]}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(1)
    get_peft_model(model, LoraConfig(**arguments)).save_pretrained(tmp_path)
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
        if hasattr(module, "get_delta_weight") and "default" in getattr(module, "lora_A", {})
    }
    assert {module.path for module in manifest.modules} == set(expected)
    for module in manifest.modules:
        ours = module.scaling * tensors[f"{module.path}.lora_B"] @ tensors[f"{module.path}.lora_A"]
        theirs = expected[module.path].get_delta_weight("default")
        if architecture == "gpt2":
            theirs = theirs.T  # PEFT gives it as the layer stores its weight, inputs first
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("option", "code"),
    [
        ({"use_dora": True}, "UNSUPPORTED_CONFIG"),
        ({"lora_bias": True}, "UNSUPPORTED_CONFIG"),
        ({"bias": "lora_only"}, "UNSUPPORTED_CONFIG"),
        ({"modules_to_save": ["lm_head"]}, "UNSUPPORTED_CONFIG"),
        ({"init_lora_weights": "pissa"}, "UNSUPPORTED_CONFIG"),
        ({"init_lora_weights": "olora"}, "UNSUPPORTED_CONFIG"),
        ({"trainable_token_indices": [1, 2]}, "UNSUPPORTED_CONFIG"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "UNSUPPORTED_TENSOR"),
        ({"alora_invocation_tokens": [1]}, "UNSUPPORTED_CONFIG"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else value,
)
def test_what_peft_saves_with_an_unsupported_option_is_refused(
    option: dict[str, Any], code: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
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
