"""Reads the adapter_config.json that mlx-lm writes: the training options, with the adapter's in `lora_parameters`."""

from collections.abc import Mapping
from typing import Any

from shared.errors import Violation
from store_service.admission.lora_settings import LoraSettings, is_finite, is_rank

MLX_FIELDS = frozenset({"fine_tune_type", "lora_parameters", "model"})
"""What shapes the adapter."""
_TRAINING_ONLY = frozenset({
    "adapter_path", "batch_size", "clear_cache_threshold", "config", "data",
    "grad_accumulation_steps", "grad_checkpoint", "hf_dataset", "iters", "learning_rate",
    "lora_layers", "lr_schedule", "mask_prompt", "max_seq_length", "num_layers", "optimizer",
    "optimizer_config", "project_name", "prompt", "prompt_feature", "completion_feature",
    "report_to", "resume_adapter_file", "save_every", "seed", "steps_per_eval", "steps_per_report",
    "test", "test_batches", "train", "train_type", "val_batches", "wandb",
})  # fmt: skip


def is_mlx_config(document: Mapping[str, Any]) -> bool:
    """Whether mlx-lm wrote this, rather than PEFT."""
    return "peft_type" not in document and isinstance(document.get("lora_parameters"), dict)


def parse_mlx_config(document: Mapping[str, Any], violations: list[Violation]) -> LoraSettings | None:
    """The settings, or None with what is wrong added to `violations`."""
    num_before = len(violations)
    kind = document.get("fine_tune_type", "lora")
    if kind != "lora":
        violations.append(
            Violation.of("UNSUPPORTED_CONFIG", "fine_tune_type", repr(kind), "'lora'", "it is another kind of adapter")
        )
    for name, value in document.items():
        known = name in _TRAINING_ONLY or name in MLX_FIELDS
        if not known and value:
            violations.append(
                Violation.of("UNKNOWN_CONFIG_FIELD", name, repr(value), "no such field", "nobody knows what it does")
            )
    parameters = document["lora_parameters"]
    rank, scale = parameters.get("rank"), parameters.get("scale")
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
    model = document.get("model")
    return LoraSettings(rank, 0.0, base_model_name=model if isinstance(model, str) else "", fixed_scaling=float(scale))


def _unknown(name: str, found: str) -> Violation:
    return Violation.of("UNKNOWN_CONFIG_FIELD", name, found, "a field of mlx-lm's", "what it does is not known")
