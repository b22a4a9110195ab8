"""Decision of admission on every field of PEFT 0.21's LoraConfig, and its reason.

A field is supported (it shapes the result), ignored (it only mattered in training), or refused (the adapter could
not be served exactly). A test holds this table against the installed PEFT.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from store_service.admission.training_words import METADATA_WORDS, TRAINING_WORDS


class Decision(StrEnum):
    """Decision on a field."""

    SUPPORT = "support"
    IGNORE = "ignore"
    REFUSE_OTHER = "refuse other values"
    REFUSE_WHEN_SET = "refuse when set"
    REFUSE_WHEN_NOT_NULL = "refuse when not null"


@dataclass(frozen=True, slots=True)
class FieldRule:
    """The decision for one field, with its reason for people."""

    decision: Decision
    reason: str
    check: Callable[[Any], bool] | None = None
    """Refuses the values for which it is false."""
    expected: str = ""


def is_unset(value: Any) -> bool:
    """Tell whether a value says nothing: null, false, zero or empty."""
    return value is None or value is False or value == 0 or value in ("", [], {})


def _is_harmless_init(value: Any) -> bool:
    return value is None or isinstance(value, bool) or value in ("gaussian", "eva", "orthogonal", "mica")


_BASE_CHANGED = (
    "this initialisation changed the base weights in training, so the tensors alone are wrong on the base model; "
    "save it again with path_initial_model_for_weight_conversion, which converts it to a plain LoRA"
)


def _support(reason: str) -> FieldRule:
    return FieldRule(Decision.SUPPORT, reason)


def _ignore(reason: str) -> FieldRule:
    return FieldRule(Decision.IGNORE, reason)


def _refuse(reason: str) -> FieldRule:
    return FieldRule(Decision.REFUSE_WHEN_SET, reason)


def _refuse_any(reason: str) -> FieldRule:
    """For fields that PEFT reads even where they are empty."""
    return FieldRule(Decision.REFUSE_WHEN_NOT_NULL, reason)


def _ignore_valid(reason: str, check: Callable[[Any], bool], expected: str) -> FieldRule:
    """For fields that only mattered in training, but that PEFT does not load with other values."""
    return FieldRule(Decision.IGNORE, reason, check, expected)


def _ignore_object(reason: str) -> FieldRule:
    return _ignore_valid(reason, lambda value: value is None or isinstance(value, dict), "an object or null")


def _is_dropout(value: Any) -> bool:
    return isinstance(value, int | float) and value <= 1


def _only(*values: Any, reason: str) -> FieldRule:
    return FieldRule(Decision.REFUSE_OTHER, reason, lambda value: value in values, " or ".join(repr(v) for v in values))


FIELDS: Mapping[str, FieldRule] = {
    "peft_type": _only("LORA", reason="only LoRA adapters are served"),
    "task_type": _only(None, "CAUSAL_LM", reason="only adapters of causal language models are served"),
    "r": _support("the rank"),
    "lora_alpha": _support("the scaling"),
    "use_rslora": _support("the scaling"),
    "rank_pattern": _support("ranks by module"),
    "alpha_pattern": _support("alphas by module"),
    "target_modules": _support("which modules; the tensors must agree"),
    "exclude_modules": _support("which modules not"),
    "layers_to_transform": _support("which layers"),
    "layers_pattern": _support("what the list of layers is called"),
    "lora_bias": _support("a bias on B; the tensors must agree"),
    "ensure_weight_tying": _support("whether a tied head has the embedding's adapter; the tensors must agree"),
    "base_model_name_or_path": _support("the base model, where the caller names none"),
    "init_lora_weights": FieldRule(
        Decision.REFUSE_OTHER,
        _BASE_CHANGED,
        _is_harmless_init,
        "true, false, 'gaussian', 'eva', 'orthogonal' or 'mica'",
    ),
    "bias": _only("none", "all", "lora_only", reason="PEFT knows no such choice of biases"),
    "modules_to_save": _support("copies of the base's modules; the tensors must be the base's"),
    "fine_tune_type": _only("lora", reason="it is another kind of adapter"),
    "train_type": _only("lora", reason="it is another kind of adapter"),
    "enable_lora": _refuse("merged linears of which only some parts are adapted, as PEFT before 0.3 had them"),
    "auto_mapping": _ignore("names Python classes to import; hotslot imports nothing that a config names"),
    "peft_version": _ignore("says who wrote it"),
    "revision": _ignore("a revision of the base; the base's digest decides"),
    "inference_mode": _ignore("freezes parameters in training"),
    "lora_dropout": _ignore_valid("only in training", _is_dropout, "a number of at most 1"),
    "fan_in_fan_out": _ignore("how the base stores its weights; A and B are the same either way"),
    "megatron_config": _ignore("how training was spread over devices"),
    "megatron_core": _ignore("a Python module to import; hotslot imports nothing that a config names"),
    "loftq_config": _ignore("parameters of an initialisation, which init_lora_weights decides about"),
    "eva_config": _ignore_object("parameters of an initialisation, which init_lora_weights decides about"),
    "corda_config": _ignore_object("parameters of an initialisation, which init_lora_weights decides about"),
    "lora_ga_config": _ignore_object("parameters of an initialisation, which init_lora_weights decides about"),
    "velora_config": _ignore_object("changes the backward pass only"),
    "qalora_group_size": _ignore("only with use_qalora"),
    "runtime_config": _ignore("where weights are kept while training"),
    "use_dora": _refuse("DoRA rescales the base's weights by module, which slots cannot do yet"),
    "use_qalora": _refuse("QALoRA pools its inputs, which slots cannot do"),
    "use_bdlora": _refuse_any("block-diagonal factors are not served yet"),
    "trainable_token_indices": FieldRule(
        Decision.REFUSE_OTHER,
        "rows of the base's embedding would have to change with the adapter",
        lambda value: value is None or value == {},
        "null",
    ),
    "target_parameters": _refuse("adapters on bare parameters (experts) are not served yet"),
    "alora_invocation_tokens": _refuse("an adapter that begins in the middle of a prompt is not served yet"),
    "layer_replication": _refuse("the base would need other layers than it has"),
    "monteclora_config": _refuse_any("sampled adapters have no single output"),
    "arrow_config": _refuse_any("routing between adapters by token is not served"),
    "kasa_config": _refuse_any("KaSA truncates the base's weights"),
}


class Unlisted(StrEnum):
    """Decision about a name that is no field of PEFT's LoraConfig."""

    IGNORE = "ignore"
    TELL = "ignore with a warning"
    REFUSE = "refuse"


def judge_unlisted(name: str, value: Any) -> Unlisted:
    """Decide about a name that the table has not.

    PEFT drops every such name with a warning that a newer PEFT may have written it. So one that may be a method's is
    refused where it is set; what only describes the adapter, and what says nothing, changes nothing.
    """
    if name in TRAINING_WORDS:
        return Unlisted.IGNORE
    # The fields of a LoraConfig are parameters in Python, whose names have no underscore in front.
    if name in METADATA_WORDS or name.startswith("_") or says_nothing(value):
        return Unlisted.TELL
    return Unlisted.REFUSE


def says_nothing(value: Any) -> bool:
    """Tell whether a value is unset, or an object of such values."""
    left = [value]
    while left:
        found = left.pop()
        if isinstance(found, dict):
            left += found.values()
        elif not is_unset(found):
            return False
    return True
