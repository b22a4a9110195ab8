"""Modules that PEFT 0.21 adapts where a config names none: it goes by the base model's type."""

from collections.abc import Mapping
from dataclasses import replace

from store_service.admission.lora_settings import Targets
from store_service.admission.patterns import Pattern

_QUERY_VALUE = ("q_proj", "v_proj")
DEFAULT_TARGETS: Mapping[str, tuple[str, ...] | str] = {
    "bart": _QUERY_VALUE,
    "bert": ("query", "value"),
    "blip-2": ("q", "v", "q_proj", "v_proj"),
    "bloom": ("query_key_value",),
    "btlm": ("c_proj", "c_attn"),
    "chatglm": ("query_key_value",),
    "codegen": ("qkv_proj",),
    "deberta": ("in_proj",),
    "deberta-v2": ("query_proj", "value_proj"),
    "electra": ("query", "value"),
    "falcon": ("query_key_value",),
    "gemma": _QUERY_VALUE,
    "gemma2": _QUERY_VALUE,
    "gemma3_text": _QUERY_VALUE,
    "gemma4": r".*language_model\..*\.(q_proj|v_proj)",
    "gpt2": ("c_attn",),
    "gpt_bigcode": ("c_attn",),
    "gpt_neo": _QUERY_VALUE,
    "gpt_neox": ("query_key_value",),
    "gptj": _QUERY_VALUE,
    "layoutlm": ("query", "value"),
    "llama": _QUERY_VALUE,
    "llama4": _QUERY_VALUE,
    "mistral": _QUERY_VALUE,
    "mixtral": _QUERY_VALUE,
    "mpt": ("Wqkv",),
    "mt5": ("q", "v"),
    "nemotron_h": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "opt": _QUERY_VALUE,
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
    "qwen2": _QUERY_VALUE,
    "qwen3": _QUERY_VALUE,
    "RefinedWeb": ("query_key_value",),
    "RefinedWebModel": ("query_key_value",),
    "roberta": ("query", "value"),
    "rwkv": ("key", "value", "receptance", "output"),
    "rwkv7": ("r_proj", "k_proj", "v_proj", "o_proj", "key", "value"),
    "stablelm": _QUERY_VALUE,
    "t5": ("q", "v"),
    "xlm-roberta": ("query", "value"),
}
"""By model type. A test holds the table against the installed PEFT."""


def with_defaults(targets: Targets, model_type: str) -> Targets | None:
    """The targets, with the type's own where the config names none; None where PEFT has none for the type."""
    if not targets.by_model_type:
        return targets
    found = DEFAULT_TARGETS.get(model_type)
    if found is None:
        return None
    if isinstance(found, str):
        return replace(targets, regex=Pattern(found))
    return replace(targets, suffixes=frozenset(found))
