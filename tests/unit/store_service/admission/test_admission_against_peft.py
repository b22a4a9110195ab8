"""Configs of any combination of fields: refused where PEFT does not load them, and served as PEFT serves them else."""

import copy
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load, load_file, save_file

from hotslot.formats.base_model import spec_from_folder
from hotslot.formats.base_spec import BaseSpec
from store_service.admission.admit import Checkpoint, Verdict, admit
from store_service.admission.settings import AdmissionLimits

PROMPT = torch.tensor([[1, 5, 9, 33, 2, 7]])
SIZES = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
BASES: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**SIZES),
    "llama with biases": transformers.LlamaConfig(**SIZES, attention_bias=True),
    "llama with a tied head": transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
}
VALUES: dict[str, list[Any]] = {
    "peft_type": ["lora", "LOHA", None],
    "task_type": [None, "", "SEQ_CLS", "causal_lm", 5],
    "r": [None, 0, -1, "4", 4.0, True, 8, 3],
    "lora_alpha": [None, 0, -3, 0.5, "8", 1e-3],
    "use_rslora": [True, False, None, "yes"],
    "rank_pattern": [{}, None, {"q_proj": 4}, {"q_proj": 2}, [], {"q_proj": None}, {"^model.*v_proj": 4}, ""],
    "alpha_pattern": [{}, None, {"q_proj": 4}, [], {"q_proj": None}, {"^model.*v_proj": 4.5}, {"x": 1}],
    "target_modules": [
        "all-linear", r".*(q|v)_proj", None, [], "", "q_proj", ["q_proj"], ["q_proj", "v_proj", "nope"],
        r"(?!.*k_proj).*\.(q|v)_proj", r".*(?<=self_attn\.)(q|v)_proj\Z", "(q|v",
    ],
    "exclude_modules": [None, [], "", ["k_proj"], ["q_proj"], ".*k_proj"],
    "layers_to_transform": [None, [], 0, [0, 1], [0], -1, [5], "0"],
    "layers_pattern": [None, [], "", [""], "layers", ["layers"], ["", "layers"], "h"],
    "lora_bias": [False, None, True, "no"],
    "ensure_weight_tying": [False, True, None],
    "bias": ["none", "all", "lora_only", None, "foo", False, ""],
    "init_lora_weights": [
        True, False, None, "gaussian", "pissa", "olora", "corda", "loftq", "lora_ga", "eva", "orthogonal", "mica",
        "foo",
    ],
    "modules_to_save": [None, [], ["lm_head"], ["nope"], ["score"], "lm_head", ["q_proj"], ["embed_tokens", "lm_head"]],
    "trainable_token_indices": [None, [], {}, [1]],
    "target_parameters": [None, [], ["x"], "x"],
    "fan_in_fan_out": [True, False, None],
    "use_dora": [True, False, None],
    "use_qalora": [True, False, None],
    "use_bdlora": [None, {}, {"nblocks": 2}, False],
    "layer_replication": [None, [], [[0, 2]]],
    "alora_invocation_tokens": [None, [], [1]],
    "loftq_config": [{}, None, {"loftq_bits": 4}],
    "eva_config": [None, {}, {"rho": 2.0}, []],
    "corda_config": [None, {}, []],
    "lora_ga_config": [None, {}, []],
    "megatron_config": [None, {}],
    "megatron_core": ["megatron.core", None],
    "lora_dropout": [0, 0.1, None, 1.5, -1, "x"],
    "inference_mode": [True, False, None],
    "revision": [None, "main"],
    "auto_mapping": [None, {}, {"base_model_class": "A", "parent_library": "b", "unsloth_fixed": True}],
    "peft_version": ["0.21.2", None],
    "monteclora_config": [None, {}, {"num_samples": 0}],
    "arrow_config": [None, {}],
    "kasa_config": [None, {}],
    "merge_weights": [False, True, None],
    "enable_lora": [None, [True, False]],
    "lora_dtype": [None, "bfloat16"],
    "learning_rate": [1e-4],
    "fine_tune_type": ["lora", "full"],
    "future": [1, None],
}  # fmt: skip
"""megatron_config is left empty: with values PEFT imports megatron, which is not installed."""
HARMLESS: list[dict[str, Any]] = [
    {"bias": "all"}, {"bias": "lora_only"}, {"merge_weights": True}, {"enable_lora": None}, {"lora_dtype": "bfloat16"},
    {"learning_rate": 1e-4, "num_train_epochs": 3, "unsloth_fixed": True}, {"modules_to_save": ["score"]},
    {"modules_to_save": []}, {"trainable_token_indices": {}}, {"lora_dropout": -1}, {"eva_config": {"rho": 2.0}},
    {"loftq_config": {"loftq_bits": 4}}, {"init_lora_weights": "orthogonal"}, {"megatron_core": None},
    {"target_modules": r"(?!.*k_proj).*\.(q|v)_proj"}, {"target_modules": r".*(?<=self_attn\.)(q|v)_proj\Z"},
    {"train_type": "lora"}, {"layer_replication": []}, {"fan_in_fan_out": True},
]  # fmt: skip
"""Fields without effect on the llama without biases: these must be admitted."""


@dataclass(frozen=True)
class Case:
    """A base, and an adapter that PEFT made for it."""

    model: Any
    spec: BaseSpec
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    made: dict[str, Case] = {}
    for name, config in BASES.items():
        folder = tmp_path_factory.mktemp("case")
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for key, parameter in model.named_parameters():
            if key.endswith(".bias"):
                torch.nn.init.normal_(parameter)
        model.save_pretrained(folder / "base")
        arguments: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
        lora = LoraConfig(**arguments, init_lora_weights=False, task_type="CAUSAL_LM")
        get_peft_model(copy.deepcopy(model), lora).save_pretrained(folder / "adapter")
        made[name] = Case(
            model,
            spec_from_folder(folder / "base", "tiny"),
            json.loads((folder / "adapter" / "adapter_config.json").read_text()),
            load_file(folder / "adapter" / "adapter_model.safetensors"),
        )
    return made


def write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def peft_logits(case: Case, folder: Path) -> torch.Tensor | None:
    """None where PEFT does not load the folder, or leaves parts of the adapter as they were initialised."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = PeftModel.from_pretrained(copy.deepcopy(case.model), str(folder)).eval()
            with torch.no_grad():
                logits: torch.Tensor = model(PROMPT).logits
        except Exception:  # noqa: BLE001 - whatever it is, PEFT does not load it
            return None
    return None if any("missing adapter keys" in str(warning.message) for warning in caught) else logits


def admitted(case: Case, folder: Path) -> tuple[Verdict, bytes]:
    blob = bytearray()
    files = {path.name: path for path in folder.iterdir()}
    return admit(Checkpoint(files), case.spec, AdmissionLimits(), blob.extend), bytes(blob)


def served_logits(case: Case, verdict: Verdict, blob: bytes) -> torch.Tensor:
    model, tensors = copy.deepcopy(case.model), load(blob)
    modules = dict(model.named_modules())
    for module in verdict.require().modules:
        linear = modules[module.path]
        delta = module.scaling * (tensors[f"{module.path}.lora_B"] @ tensors[f"{module.path}.lora_A"])
        linear.weight = torch.nn.Parameter(linear.weight + (delta.T if "embed" in module.path else delta))
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(PROMPT).logits
    return logits


def compare(case: Case, folder: Path, changes: dict[str, Any], tensors: dict[str, torch.Tensor] | None = None) -> bool:
    """Whether it was admitted, after holding what happened to it against PEFT."""
    write(folder, case.config | changes, tensors or case.tensors)
    theirs = peft_logits(case, folder)
    verdict, blob = admitted(case, folder)
    if verdict.manifest is None:
        assert all(violation.message for violation in verdict.violations)
        return False
    assert theirs is not None, f"PEFT does not load {changes}, and it was admitted"
    torch.testing.assert_close(served_logits(case, verdict, blob), theirs, rtol=1e-4, atol=1e-5)
    return True


@settings(
    max_examples=70, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    base=st.sampled_from(sorted(BASES)),
    names=st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=3, unique=True),
    data=st.data(),
)
def test_what_peft_does_not_load_is_refused_and_what_is_admitted_computes_the_same(
    cases: dict[str, Case], tmp_path: Path, base: str, names: list[str], data: st.DataObject
) -> None:
    compare(cases[base], tmp_path, {name: data.draw(st.sampled_from(VALUES[name]), name) for name in names})


@pytest.mark.parametrize("name", VALUES)
def test_each_value_alone_is_judged_as_peft_does(cases: dict[str, Case], tmp_path: Path, name: str) -> None:
    for value in VALUES[name]:
        compare(cases["llama"], tmp_path, {name: value})


@pytest.mark.parametrize("changes", HARMLESS, ids=json.dumps)
def test_words_without_effect_are_no_reason_to_refuse(
    cases: dict[str, Case], tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert compare(cases["llama"], tmp_path, changes)


@pytest.mark.parametrize("pattern", VALUES["layers_pattern"], ids=json.dumps)
def test_layers_that_are_chosen_by_a_pattern_are_those_that_peft_chooses(
    cases: dict[str, Case], tmp_path: Path, pattern: Any
) -> None:
    case = cases["llama"]
    chosen: dict[str, Any] = {"layers_to_transform": 0, "layers_pattern": pattern, "target_modules": ["q_proj"]}
    of_first = {key: each for key, each in case.tensors.items() if ".layers.0." in key and "q_proj" in key}
    is_loaded = pattern in (None, [], "", "layers", ["layers"], ["", "layers"])
    assert compare(case, tmp_path, chosen, of_first) is is_loaded


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_the_base_has_are_a_reason(cases: dict[str, Case], tmp_path: Path, bias: str) -> None:
    case = cases["llama with biases"]
    assert not compare(case, tmp_path, {"bias": bias})
    verdict, _ = admitted(case, tmp_path)
    assert [violation.subject for violation in verdict.violations] == ["bias"]


def test_biases_elsewhere_are_no_reason_where_only_those_of_adapted_modules_are_trained(
    cases: dict[str, Case], tmp_path: Path
) -> None:
    case = cases["llama with biases"]
    lora = LoraConfig(r=4, target_modules=["up_proj"], init_lora_weights=False, bias="lora_only", task_type="CAUSAL_LM")
    get_peft_model(copy.deepcopy(case.model), lora).save_pretrained(tmp_path)
    verdict, blob = admitted(case, tmp_path)
    theirs = peft_logits(case, tmp_path)
    torch.testing.assert_close(served_logits(case, verdict, blob), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
@pytest.mark.parametrize("base", ["llama", "llama with a tied head"])
def test_unchanged_copies_of_saved_modules_are_no_reason_and_changed_ones_are(
    cases: dict[str, Case], tmp_path: Path, base: str, name: str
) -> None:
    case = cases[base]
    lora = LoraConfig(
        r=4, target_modules=["q_proj"], init_lora_weights=False, modules_to_save=[name], task_type="CAUSAL_LM"
    )
    get_peft_model(copy.deepcopy(case.model), lora).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert compare(case, tmp_path, config, tensors)
    (copied,) = (key for key in tensors if name in key)
    changed = {key: tensor + 1 if key == copied else tensor for key, tensor in tensors.items()}
    assert not compare(case, tmp_path, config, changed)
    without = {key: tensor for key, tensor in tensors.items() if key != copied}
    assert not compare(case, tmp_path, config, without)


@pytest.mark.parametrize("pattern", [{"lm_head": 2}, {"embed_tokens": 6}, {"lm_head": 8, "embed_tokens": 3}])
def test_a_tied_pair_with_a_rank_pattern_on_one_end_is_served_as_peft_does(
    cases: dict[str, Case], tmp_path: Path, pattern: dict[str, int]
) -> None:
    case = cases["llama with a tied head"]
    arguments: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["lm_head", "q_proj"]}
    lora = LoraConfig(
        **arguments, rank_pattern=pattern, ensure_weight_tying=True, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    get_peft_model(copy.deepcopy(case.model), lora).save_pretrained(tmp_path)
    verdict, blob = admitted(case, tmp_path)
    assert verdict.violations == ()
    theirs = PeftModel.from_pretrained(copy.deepcopy(case.model), str(tmp_path))
    tensors = load(blob)
    for module in verdict.require().modules:
        layer = theirs.base_model.model.get_submodule(module.path)
        expected = layer.get_delta_weight("default")
        ours = module.scaling * (tensors[f"{module.path}.lora_B"] @ tensors[f"{module.path}.lora_A"])
        torch.testing.assert_close(ours.T if "embed" in module.path else ours, expected)
