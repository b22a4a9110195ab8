"""Tiny random models as folders, adapters that PEFT makes for them, and what PEFT answers with those."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from tokenizers import Tokenizer, models

VOCAB = 64
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """How to make one, and what its modules are called."""

    config_class: type[Any]
    config: dict[str, Any]
    attention: str = "q_proj"
    mlp: str = "down_proj"
    embedding: str = "embed_tokens"
    others: str = ""
    """Regular expression of the paths that are no part of the text model."""


ARCHITECTURES = {
    "llama": Architecture(transformers.LlamaConfig, SIZES),
    "qwen3": Architecture(transformers.Qwen3Config, {**SIZES, "head_dim": 8}),
    "gemma3": Architecture(transformers.Gemma3TextConfig, {**SIZES, "head_dim": 8, "sliding_window": 16}),
    "gpt_neox": Architecture(
        transformers.GPTNeoXConfig,
        {name: size for name, size in SIZES.items() if name != "num_key_value_heads"},
        "query_key_value",
        "dense_4h_to_h",
        "embed_in",
    ),
}


def make_model(folder: Path, architecture: str, *, is_tied: bool, seed: int = 0) -> Path:
    """A checkpoint with a tokenizer, as the hub has them."""
    return save_model(folder, ARCHITECTURES[architecture], seed, tie_word_embeddings=is_tied)


def save_model(folder: Path, architecture: Architecture, seed: int = 0, **config: Any) -> Path:
    """The same for an architecture that has no name here."""
    torch.manual_seed(seed)
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    text_config = architecture.config.get("text_config")
    of_part = {"text_config": {**text_config, **ends}} if text_config is not None else ends
    made = architecture.config_class(**{**architecture.config, **of_part}, **config)
    auto_class(made).from_config(made).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def auto_class(config: transformers.PretrainedConfig) -> Any:
    """What loads a model of this config as people do, a multimodal one as a whole."""
    is_multimodal = config.get_text_config(decoder=True) is not config
    return transformers.AutoModelForImageTextToText if is_multimodal else transformers.AutoModelForCausalLM


def load_whole(base: Path) -> Any:
    """The model of a folder, in fp32."""
    return auto_class(transformers.AutoConfig.from_pretrained(base)).from_pretrained(base, dtype=torch.float32)


def make_adapter(base: Path, folder: Path, *, seed: int = 1, **arguments: Any) -> Path:
    """A LoRA whose every part does something, saved by PEFT."""
    model = load_whole(base)
    torch.manual_seed(seed)
    config = LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **arguments)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


class PeftOracle:
    """The base, or freshly loaded adapters with weights, as PEFT computes them."""

    def __init__(self, base: Path, adapter: Path | None = None, weight: float = 1.0) -> None:
        self._load(base, [] if adapter is None else [(adapter, weight)])

    @classmethod
    def of_mix(cls, base: Path, mix: Sequence[tuple[Path, float]]) -> "PeftOracle":
        """Of several adapters at once: PEFT's sum of them, each with its scaling multiplied by its weight."""
        oracle = cls.__new__(cls)
        oracle._load(base, mix)
        return oracle

    def _load(self, base: Path, mix: Sequence[tuple[Path, float]]) -> None:
        model: Any = load_whole(base)
        weights = {f"a{index}": weight for index, (_, weight) in enumerate(mix)}
        for name, (adapter, _) in zip(weights, mix, strict=True):
            if name == "a0":
                model = PeftModel.from_pretrained(model, str(adapter), adapter_name=name)
            else:
                model.load_adapter(str(adapter), adapter_name=name)
        if mix:
            model.base_model.set_adapter(list(weights))
        for module in model.modules():
            if isinstance(module, LoraLayer):
                for name in module.scaling:
                    module.scaling[name] *= weights[name]
        self._model = model.eval()

    @torch.no_grad()
    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """After each token, `[T, V]`."""
        logits: torch.Tensor = self._model(input_ids=torch.tensor([list(token_ids)])).logits[0]
        return logits

    def greedy(self, token_ids: Sequence[int], count: int) -> list[int]:
        """The next tokens, each computed from all before it."""
        known = list(token_ids)
        for _ in range(count):
            known.append(int(self.logits(known)[-1].argmax()))
        return known[len(token_ids) :]
