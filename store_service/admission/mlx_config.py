"""Reads the adapter_config.json that mlx-lm writes: the training options, with the adapter's in `lora_parameters`."""

from collections.abc import Mapping
from typing import Any

from hotslot.errors import Violation
from store_service.admission.config_fields import Unlisted, judge_unlisted
from store_service.admission.lora_settings import LoraSettings, is_finite, is_rank

MLX_FIELDS = frozenset({"base_model_name_or_path", "fine_tune_type", "lora_parameters", "model", "train_type"})
"""Fields that shape the adapter."""
_KINDS = ("fine_tune_type", "train_type")
"""Fields with the kind of an adapter, in mlx-lm and in mlx-lm-lora."""
_TOLD_BY_TENSORS = frozenset({"alpha", "lora_layers", "num_layers", "target_modules"})
"""Fields with the layers and modules that were trained; alpha outside of the parameters is one of preference training.
"""
_NAMES = ("model", "base_model_name_or_path")
MLX_NAMES = MLX_FIELDS | _TOLD_BY_TENSORS | {"use_dora"}
"""All that mean something here."""


def is_mlx_config(document: Mapping[str, Any]) -> bool:
    """Tell whether mlx-lm wrote this config, rather than PEFT."""
    return "peft_type" not in document and "lora_parameters" in document


def parse_mlx_config(document: Mapping[str, Any], violations: list[Violation]) -> LoraSettings | None:
    """The settings, or None with what is wrong added to `violations`."""
    num_before = len(violations)
    for kind in _KINDS:
        if document.get(kind, "lora") != "lora":
            found, problem = repr(document[kind]), "it is another kind of adapter"
            violations.append(Violation.of("UNSUPPORTED_CONFIG", kind, found, "'lora'", problem))
    if document.get("use_dora"):
        problem = "DoRA rescales the base's weights by module, which slots cannot do yet"
        violations.append(Violation.of("UNSUPPORTED_CONFIG", "use_dora", repr(document["use_dora"]), "unset", problem))
    for name, value in document.items():
        if name not in MLX_NAMES and judge_unlisted(name, value) is Unlisted.REFUSE:
            violations.append(_unknown(name, repr(value)))
    parameters = document["lora_parameters"]
    if not isinstance(parameters, dict):
        found, expected = repr(parameters), "an object with rank and scale"
        problem = "mlx-lm writes the adapter's rank and scale here, and without them no LoRA was trained"
        violations.append(Violation.of("BAD_CONFIG_VALUE", "lora_parameters", found, expected, problem))
        return None
    rank: Any = parameters.get("rank")
    scale: Any = parameters.get("scale")
    if not is_rank(rank):
        violations.append(
            Violation.of("BAD_CONFIG_VALUE", "lora_parameters.rank", repr(rank), "a positive integer", "it is no rank")
        )
    if not is_finite(scale):
        violations.append(
            Violation.of("BAD_CONFIG_VALUE", "lora_parameters.scale", repr(scale), "a finite number", "it is no factor")
        )
    alpha = parameters.get("alpha")
    if alpha is not None and (not is_finite(alpha) or alpha != rank):
        problem = (
            "versions of mlx-lm differ on whether they scale by alpha / rank, too; remove it, and fold it into `scale` "
            "where the version that trained this did"
        )
        expected = "no alpha, or one that equals rank"
        violations.append(Violation.of("UNSUPPORTED_CONFIG", "lora_parameters.alpha", repr(alpha), expected, problem))
    for name in sorted(set(parameters) - {"rank", "scale", "dropout", "keys", "alpha"}):
        found, subject = repr(parameters[name]), f"lora_parameters.{name}"
        violations.append(_unknown(subject, found))
    if len(violations) > num_before:
        return None
    names = [document.get(key) for key in _NAMES]
    base_name = next((name for name in names if isinstance(name, str)), "")
    return LoraSettings(rank, 0.0, base_model_name=base_name, fixed_scaling=float(scale))


def _unknown(name: str, found: str) -> Violation:
    return Violation.of("UNKNOWN_CONFIG_FIELD", name, found, "a field of mlx-lm's", "what it does is not known")
