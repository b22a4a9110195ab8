"""Adapters trained on one form of a model and admitted to its twin: each delta is what PEFT computes, row by row."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load

from hotslot.formats.base_model import spec_from_folder
from store_service.admission.admit import Checkpoint, Verdict, admit
from store_service.admission.settings import AdmissionLimits
from tests.support.tiny_models import load_whole, make_adapter
from tests.support.twins import PARTS, save_twins

PROMPT = torch.tensor([[1, 5, 9, 33, 2, 7, 12]])
SPLIT_ATTENTION, SPLIT_ALL = ["q_proj", "k_proj", "v_proj"], [*PARTS["qkv_proj"], *PARTS["gate_up_proj"]]
OF_SPLIT: dict[str, dict[str, Any]] = {
    "all parts": {"target_modules": SPLIT_ATTENTION, "r": 4, "lora_alpha": 8},
    "q and v alone": {"target_modules": ["q_proj", "v_proj", "o_proj"], "r": 4, "lora_alpha": 3},
    "k and up alone": {"target_modules": ["k_proj", "up_proj"], "r": 5, "lora_alpha": 7},
    "everything": {"target_modules": "all-linear", "r": 3, "lora_alpha": 5},
    "a regex": {"target_modules": r".*\.1\.(self_attn\.(q|k)_proj|mlp\.gate_proj)", "r": 2, "lora_alpha": 2},
    "some layers": {"target_modules": SPLIT_ALL, "r": 2, "lora_alpha": 1, "layers_to_transform": [1]},
    "rsLoRA": {"target_modules": SPLIT_ALL, "r": 3, "lora_alpha": 4, "use_rslora": True},
    "biases": {"target_modules": ["q_proj", "v_proj", "up_proj"], "r": 4, "lora_alpha": 7, "lora_bias": True},
    "ranks with their alphas": {
        "target_modules": SPLIT_ALL, "r": 2, "lora_alpha": 6, "rank_pattern": {"k_proj": 4, "up_proj": 6},
        "alpha_pattern": {"k_proj": 12, "up_proj": 18},
    },
    "scalings apart by powers of two": {
        "target_modules": SPLIT_ALL, "r": 4, "lora_alpha": 3, "alpha_pattern": {"q_proj": 12, "v_proj": 0.375},
        "lora_bias": True,
    },
    "opposite scalings": {
        "target_modules": SPLIT_ALL, "r": 4, "lora_alpha": 3, "alpha_pattern": {"v_proj": -6, "up_proj": 0},
    },
    "another module's own scaling": {
        "target_modules": [*SPLIT_ALL, "down_proj"], "r": 4, "lora_alpha": 3, "alpha_pattern": {"down_proj": 7},
    },
}  # fmt: skip
OF_FUSED: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["qkv_proj"], "r": 4, "lora_alpha": 7},
    "everything": {"target_modules": "all-linear", "r": 3, "lora_alpha": 5},
    "a regex": {"target_modules": r".*\.0\..*(qkv|gate_up)_proj", "r": 2, "lora_alpha": 3},
    "biases": {"target_modules": ["qkv_proj", "gate_up_proj"], "r": 4, "lora_alpha": 7, "lora_bias": True},
    "rsLoRA and patterns": {
        "target_modules": ["qkv_proj", "gate_up_proj", "o_proj"], "r": 4, "lora_alpha": 3, "use_rslora": True,
        "rank_pattern": {"qkv_proj": 6, r".*\.1\..*gate_up_proj": 2}, "alpha_pattern": {"gate_up_proj": 5},
    },
}  # fmt: skip
CASES = [("split", "fused", name, kind) for name, kind in OF_SPLIT.items()]
CASES += [("fused", "split", name, kind) for name, kind in OF_FUSED.items()]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_twins(tmp_path_factory.mktemp("twins"))


def judged(adapter: Path, base: Path) -> tuple[Verdict, bytes]:
    blob = bytearray()
    files = {path.name: path for path in adapter.iterdir()}
    return admit(Checkpoint(files), spec_from_folder(base, "tiny"), AdmissionLimits(), blob.extend), bytes(blob)


def by_rows(folder: Path, base: Path, form: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """PEFT's own delta and bias of each module, in the form that is asked for, zeros where it has no adapter."""
    model = PeftModel.from_pretrained(load_whole(base), str(folder)).base_model.model
    found = {}
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not path.endswith("_proj") or weight is None:
            continue
        delta, bias = torch.zeros_like(weight), torch.zeros(weight.shape[0])
        if hasattr(module, "get_delta_weight"):
            delta = module.get_delta_weight("default").detach()
            own_bias = module.lora_B["default"].bias
            bias = module.scaling["default"] * own_bias.detach() if own_bias is not None else bias
        found[path] = delta, bias
    for fused, parts in PARTS.items():
        for path in [path for path in found if path.endswith(f".{fused if form == 'split' else parts[0]}")]:
            parent = path.rpartition(".")[0]
            if form == "split":
                delta, bias = found.pop(path)
                sizes = [32, 16, 16] if len(parts) == 3 else [48, 48]
                pieces = zip(parts, torch.split(delta, sizes), torch.split(bias, sizes), strict=True)
                found |= {f"{parent}.{part}": (piece, own) for part, piece, own in pieces}
            else:
                own_parts = [found.pop(f"{parent}.{part}") for part in parts]
                stacked = [torch.cat(tensors) for tensors in zip(*own_parts, strict=True)]
                found[f"{parent}.{fused}"] = stacked[0], stacked[1]
    return found


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(PROMPT).logits
    return logits


def test_the_twins_answer_alike(twins: dict[str, Path]) -> None:
    torch.testing.assert_close(logits_of(load_whole(twins["fused"])), logits_of(load_whole(twins["split"])))


@pytest.mark.parametrize(("trained", "served", "name", "kind"), CASES, ids=lambda value: str(value)[:32])
def test_each_delta_on_the_twin_is_what_peft_computes(
    twins: dict[str, Path], trained: str, served: str, name: str, kind: dict[str, Any], tmp_path: Path
) -> None:
    adapter = make_adapter(twins[trained], tmp_path, **kind)
    verdict, blob = judged(adapter, twins[served])
    tensors, expected = load(blob), by_rows(adapter, twins[trained], served)
    modules = {module.path: module for module in verdict.require().modules}
    changed = {path for path, (delta, bias) in expected.items() if delta.any() or bias.any()}
    assert changed <= modules.keys() <= expected.keys()
    model, biases = load_whole(twins[served]), {}
    for path, (delta, bias) in expected.items():
        if path not in modules:
            continue
        module = modules[path]
        ours = module.scaling * (tensors[f"{path}.lora_B"] @ tensors[f"{path}.lora_A"])
        torch.testing.assert_close(ours, delta, rtol=1e-6, atol=1e-6)
        biases[path] = module.scaling * tensors.get(f"{path}.lora_B.bias", torch.zeros_like(bias))
        torch.testing.assert_close(biases[path], bias, rtol=0, atol=0)
        linear = model.get_submodule(path)
        linear.weight.data += ours
        linear.bias = torch.nn.Parameter(biases[path])
    theirs = logits_of(PeftModel.from_pretrained(load_whole(twins[trained]), str(adapter)))
    torch.testing.assert_close(logits_of(model), theirs, rtol=1e-4, atol=1e-4)
    assert float((theirs - logits_of(load_whole(twins[trained]))).abs().max()) > 0.01, name


@pytest.mark.parametrize("trained", ["split", "fused"])
def test_a_bias_of_the_base_that_changed_is_seen_in_the_other_form(trained: str, tmp_path: Path) -> None:
    """Of a Qwen2, whose queries, keys and values have biases; the fused base has one by its details alone."""
    config = transformers.Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "qwen2")
    base = tmp_path / "qwen2" if trained == "fused" else save_twins(tmp_path)["fused"]
    spec = spec_from_folder(base, "tiny")
    if trained == "split":
        assert spec.details is not None
        changed = spec.details.bias_paths | {"model.layers.0.self_attn.qkv_proj"}
        spec = replace(spec, details=replace(spec.details, bias_paths=changed))
    other = save_twins(tmp_path / "other")[trained]
    target = "qkv_proj" if trained == "fused" else "k_proj"
    adapter = make_adapter(other, tmp_path / "adapter", target_modules=[target], r=2, bias="lora_only")
    files = {path.name: path for path in adapter.iterdir()}
    violations = admit(Checkpoint(files), spec, AdmissionLimits()).violations
    assert "bias" in {violation.subject for violation in violations}


@pytest.mark.parametrize("model_type", ["phi3", "glm", "glm4"])
@torch.no_grad()
def test_rows_of_a_fused_mlp_are_those_of_gate_then_up(model_type: str) -> None:
    config_class = {"phi3": transformers.Phi3Config, "glm": transformers.GlmConfig, "glm4": transformers.Glm4Config}
    sizes = {"vocab_size": 64, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "pad_token_id": 0}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
    model = transformers.AutoModelForCausalLM.from_config(config_class[model_type](**sizes, **heads))
    mlp: Any = model.model.layers[0].mlp
    x = torch.randn(3, 8)
    gate, up = mlp.gate_up_proj.weight.split(12)
    expected = mlp.down_proj(torch.nn.functional.silu(x @ gate.T) * (x @ up.T))
    torch.testing.assert_close(mlp(x), expected)


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)
