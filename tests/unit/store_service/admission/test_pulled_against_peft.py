"""PEFT folders written back from admitted versions: PEFT loads them to the deltas that were pushed."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from hotslot.errors import InvalidAdapterError
from hotslot.formats.base_model import spec_from_folder
from hotslot.formats.base_spec import BaseSpec
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.formats.peft_folder import write_peft_folder
from hotslot.ids import digest_of
from store_service.admission.admit import Checkpoint, admit
from store_service.admission.settings import AdmissionLimits

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
BASES: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**SIZES),
    "tied": transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "biased": transformers.LlamaConfig(**SIZES, attention_bias=True),
    "gpt2": transformers.GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32),
    "phi3": transformers.Phi3Config(**SIZES, pad_token_id=0),
}
QV = ["q_proj", "v_proj"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": QV}),
    "all linear": ("llama", {"target_modules": "all-linear", "r": 3, "lora_alpha": 7}),
    "rank stabilised": ("llama", {"target_modules": QV, "use_rslora": True, "r": 5, "lora_alpha": 3}),
    "ranks": ("llama", {"target_modules": QV, "rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 7}}),
    "alphas": ("llama", {"target_modules": QV, "alpha_pattern": {"q_proj": 5, "^model.layers.1.*v_proj": 0.3}}),
    "ranks and alphas, stabilised": (
        "llama",
        {"target_modules": QV, "use_rslora": True, "rank_pattern": {"v_proj": 3}, "alpha_pattern": {"q_proj": 11}},
    ),
    "one layer": ("llama", {"target_modules": ["down_proj"], "layers_to_transform": [1]}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"], "rank_pattern": {"embed_tokens": 2}}),
    "head": ("llama", {"target_modules": ["lm_head", "v_proj"]}),
    "tied embedding and head": (
        "tied",
        {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    ),
    "biases": ("biased", {"target_modules": QV, "lora_bias": True}),
    "transposed": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "fused": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
    "saved modules that are the base's": ("llama", {"target_modules": QV, "modules_to_save": ["lm_head"]}),
    "bfloat16": ("llama", {"target_modules": QV}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, BaseSpec]]:
    made = {}
    for name, config in BASES.items():
        folder = tmp_path_factory.mktemp("base") / name
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        made[name] = (folder, spec_from_folder(folder, f"tiny/{name}"))
    return made


def base_of(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def pushed(folder: Path, base: Path, options: dict[str, Any], dtype: torch.dtype) -> Path:
    """An adapter as PEFT saves it, with random values everywhere."""
    torch.manual_seed(1)
    config = LoraConfig(**({"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "init_lora_weights": False} | options))
    model = get_peft_model(base_of(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) / 4)
                parameter.data = parameter.data.to(dtype)
    model.save_pretrained(folder)
    return folder


def written(folder: Path, spec: BaseSpec, target: Path) -> Manifest:
    blob = bytearray()
    files = {path.name: path for path in folder.iterdir()}
    verdict = admit(Checkpoint(files), spec, AdmissionLimits(), blob.extend)
    manifest = verdict.require()
    target.mkdir()
    stabilised = json.loads((folder / "adapter_config.json").read_text())["use_rslora"]
    write_peft_folder(target, io.BytesIO(bytes(blob)), manifest, spec, uses_rslora=stabilised)
    return manifest


def deltas(base: Path, folder: Path, *, is_tied: bool = False) -> dict[str, torch.Tensor]:
    """Deltas as PEFT itself computes them, and its biases of B, by module."""
    loaded: Any = PeftModel.from_pretrained(base_of(base), str(folder))
    result = loaded.load_adapter(str(folder), "again")
    missing = [key for key in result.missing_keys if "lora_" in key and "again" in key]
    assert is_tied or not missing + list(result.unexpected_keys), (
        "PEFT knows every tensor of the folder, and misses none"
    )
    found: dict[str, torch.Tensor] = {}
    for name, module in loaded.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight") and "default" in module.scaling:
            path = name.removeprefix("base_model.model.")
            found[path] = module.get_delta_weight("default").detach()
            bias = getattr(module.lora_B["default"], "bias", None) if "default" in module.lora_B else None
            if bias is not None:
                found[path + ".bias"] = bias.detach()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_written_back_has_the_deltas_that_were_pushed(
    kind: str, bases: dict[str, tuple[Path, BaseSpec]], tmp_path: Path
) -> None:
    (base, spec), options = bases[KINDS[kind][0]], KINDS[kind][1]
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    before = pushed(tmp_path / "pushed", base, options, dtype)
    manifest = written(before, spec, tmp_path / "pulled")
    ours, theirs = (
        deltas(base, tmp_path / "pulled"),
        deltas(base, before, is_tied=bool(options.get("ensure_weight_tying"))),
    )
    assert ours.keys() == theirs.keys()
    assert all(delta.abs().max() > 0 for delta in theirs.values())
    for path, delta in theirs.items():
        assert torch.equal(ours[path], delta), path
    assert written(tmp_path / "pulled", spec, tmp_path / "again").digest == manifest.digest, (
        "pushed again, it is the same"
    )


def test_biases_beside_an_embedding_are_refused_since_no_config_of_peft_loads_them(
    bases: dict[str, tuple[Path, BaseSpec]], tmp_path: Path
) -> None:
    modules = (
        AdapterModule("model.embed_tokens", 2, 1.0),
        AdapterModule("model.layers.0.self_attn.q_proj", 2, 1.0, has_bias=True),
        AdapterModule("model.nowhere", 2, 1.0),
    )
    spec = bases["llama"][1]
    manifest = Manifest(spec.digest, digest_of(b""), 0, "F32", modules)
    with pytest.raises(InvalidAdapterError) as refused:
        write_peft_folder(tmp_path, io.BytesIO(), manifest, spec, uses_rslora=False)
    assert [violation.subject for violation in refused.value.violations] == ["model.nowhere", "model.embed_tokens"]
    assert list(tmp_path.iterdir()) == []
