"""Adapters by the names that transformers loads a model under, where its checkpoint has others, against PEFT."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load, load_file, save_file

from hotslot.formats.base_model import spec_from_folder
from hotslot.formats.base_spec import BaseSpec
from store_service.admission.admit import Checkpoint, Verdict, admit
from store_service.admission.settings import AdmissionLimits

TEXT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
MULTIMODAL: dict[str, tuple[Any, Any]] = {
    "gemma3": (
        transformers.Gemma3ForConditionalGeneration,
        transformers.Gemma3Config(
            text_config={**TEXT, "model_type": "gemma3_text"},
            vision_config={**VISION, "model_type": "siglip_vision_model"},
            mm_tokens_per_image=4,
        ),
    ),
    "llava": (
        transformers.LlavaForConditionalGeneration,
        transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(**TEXT), vision_config=transformers.CLIPVisionConfig(**VISION)
        ),
    ),
    "mistral3": (
        transformers.Mistral3ForConditionalGeneration,
        transformers.Mistral3Config(
            text_config=transformers.MistralConfig(**TEXT), vision_config=transformers.PixtralVisionConfig(**VISION)
        ),
    ),
}
DECODERS: dict[str, tuple[Any, str]] = {
    "llama": (transformers.LlamaConfig(**TEXT), "model."),
    "gpt2": (transformers.GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2), "transformer."),
    "gpt_neox": (
        transformers.GPTNeoXConfig(
            vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
        ),
        "gpt_neox.",
    ),
}


@dataclass(frozen=True)
class Case:
    """A base whose checkpoint has other names than the loaded model."""

    folder: Path
    model: Any
    spec: BaseSpec
    layers: str
    """What the loaded model has before the number of a layer."""
    leaf: str
    """A linear in each layer, fused or not."""


@pytest.fixture(scope="module", params=[*MULTIMODAL, *DECODERS])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    if request.param in MULTIMODAL:
        model_class, config = MULTIMODAL[request.param]
        model_class(config).save_pretrained(folder)
        model = model_class.from_pretrained(folder)
        return Case(folder, model, spec_from_folder(folder, "tiny"), "model.language_model.layers.", "self_attn.q_proj")
    config, backbone = DECODERS[request.param]
    model_class = type(transformers.AutoModelForCausalLM.from_config(config))
    model_class(config).save_pretrained(folder)
    file = folder / "model.safetensors"
    # As a decoder alone is saved, and as GPT-2 is on the hub.
    bare = {name.removeprefix(backbone): tensor for name, tensor in load_file(file).items()}
    save_file(bare, file, metadata={"format": "pt"})
    model = model_class.from_pretrained(folder)
    layers, leaf = {
        "llama": ("model.layers.", "self_attn.q_proj"),
        "gpt2": ("transformer.h.", "attn.c_attn"),
        "gpt_neox": ("gpt_neox.layers.", "attention.query_key_value"),
    }[request.param]
    return Case(folder, model, spec_from_folder(folder, "tiny"), layers, leaf)


def saved(case: Case, folder: Path, **options: Any) -> None:
    lora = LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, task_type="CAUSAL_LM", **options)
    get_peft_model(type(case.model).from_pretrained(case.folder), lora).save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": True}))


def judged(case: Case, folder: Path) -> tuple[Verdict, bytes]:
    blob = bytearray()
    files = {path.name: path for path in folder.iterdir()}
    return admit(Checkpoint(files), case.spec, AdmissionLimits(), blob.extend), bytes(blob)


def in_layers(path: str) -> str:
    """The number of its layer and what is behind."""
    found = re.search(r"(?:^|\.)(?:layers|h)\.(\d+\..+)", path)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("how", ["list", "whole paths", "expression", "patterns"])
def test_adapters_by_the_loaded_names_have_pefts_delta_weights(case: Case, how: str, tmp_path: Path) -> None:
    expression = rf"{case.layers.replace('.', chr(92) + '.')}[01]{chr(92)}.{case.leaf}"
    options: dict[str, dict[str, Any]] = {
        "list": {"target_modules": [case.leaf], "exclude_modules": ".*vision.*"},
        "whole paths": {"target_modules": [f"{case.layers}1.{case.leaf}"]},
        "expression": {"target_modules": expression},
        "patterns": {
            "target_modules": expression,
            "rank_pattern": {f"{case.layers}0.{case.leaf}": 2},
            "alpha_pattern": {f"^{case.layers}1.*": 32},
        },
    }
    saved(case, tmp_path, **options[how])
    verdict, blob = judged(case, tmp_path)
    assert verdict.violations == ()
    model = PeftModel.from_pretrained(type(case.model).from_pretrained(case.folder), str(tmp_path))
    theirs = {
        in_layers(name): module.get_delta_weight("default")
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    tensors = load(blob)
    ours = {}
    for module in verdict.require().modules:
        delta = module.scaling * (tensors[f"{module.path}.lora_B"] @ tensors[f"{module.path}.lora_A"])
        ours[in_layers(module.path)] = delta.T if case.spec.model_type == "gpt2" else delta
    assert ours.keys() == theirs.keys()
    for name, delta in ours.items():
        torch.testing.assert_close(delta, theirs[name])


def test_parts_of_a_tower_are_refused_as_such(case: Case, tmp_path: Path) -> None:
    if "language_model" not in case.layers:
        pytest.skip("it has no tower")
    saved(case, tmp_path, target_modules=["q_proj"])
    verdict, _ = judged(case, tmp_path)
    assert {violation.code for violation in verdict.violations} == {"UNSUPPORTED_MODULE"}
    assert all("vision" in violation.subject for violation in verdict.violations)
