"""Loads a causal language model: a checkpoint's own, or the text part of a multimodal one, proved to answer like it.

The whole multimodal model is loaded once, as transformers loads it, and its text part becomes a causal language model
of its own. The whole model's answer to text alone is the reference: a part that answers otherwise, for example
because its positions mean something else, is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from hotslot.errors import ModelNotServableError
from hotslot.formats.base_spec import BaseSpec
from worker_service.model.layer_outputs import relative_error
from worker_service.model.observed import loaded_paths, observed

log = structlog.get_logger(__name__)

PROMPT_LENGTHS = (5, 48)
MAX_RELATIVE_ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""|found - expected| / |expected| over all logits of a prompt: the same weights in the same order of operations, but
for masks that are made in another way."""
_WHOLE = (
    transformers.AutoModelForImageTextToText,
    transformers.AutoModelForMultimodalLM,
    transformers.AutoModelForCausalLM,
)
_SAME_AS = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
"""Text parts that have no causal language model of their own: on text alone, where their three positions are one, they
are these types, weight by weight."""


@dataclass(frozen=True)
class TextModel:
    """A causal language model, and where it has the modules of its checkpoint."""

    model: PreTrainedModel
    spec: BaseSpec
    """With what the loaded model lacks, as it was observed."""
    paths: Mapping[str, str]
    """Paths in the model of the spec's modules that it has."""


def load_text_model(folder: Path, spec: BaseSpec, dtype: torch.dtype, device: torch.device) -> TextModel:
    """Load what can be served of a folder.

    Raises ModelNotServableError where a text part cannot be told from the whole, or answers otherwise.
    """
    config = transformers.AutoConfig.from_pretrained(folder)
    if config.get_text_config(decoder=True) is config:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
        paths = loaded_paths(model, spec.modules)
    else:
        whole = _auto_class(config).from_pretrained(folder, dtype=dtype).to(device).eval()
        model = text_part_of(whole)
        _check_same(whole, model, dtype)
        inside = _prefixes(whole, model)
        paths = {}
        for path, name in loaded_paths(whole, spec.modules).items():
            for outer, inner in inside:
                if name == outer or name.startswith(f"{outer}."):
                    paths[path] = inner + name[len(outer) :]
        log.info("text_part_loaded", of=config.model_type, text_model=type(model).__name__)
    return TextModel(model, observed(spec, paths, dict(model.named_modules())), paths)


def text_part_of(whole: PreTrainedModel) -> PreTrainedModel:
    """The causal language model in a multimodal one, sharing its weights."""
    decoder, head = whole.get_decoder(), whole.get_output_embeddings()
    text_config = whole.config.get_text_config(decoder=True)
    config = _config_of_part(text_config)
    if config is None or head is None or type(config) not in AutoModelForCausalLM._model_mapping:
        raise _not_servable(whole, f"its text part is a {text_config.model_type}, which no causal language model is")
    with torch.device("meta"):
        part = AutoModelForCausalLM.from_config(config)
    if type(part.base_model) is type(decoder):
        setattr(part, part.base_model_prefix, decoder)
    elif config is not text_config:
        part.base_model.load_state_dict(decoder.state_dict(), assign=True)
        with head.weight.device:
            part.base_model.rotary_emb = type(part.base_model.rotary_emb)(config)
    else:
        raise _not_servable(
            whole, f"its text part is a {type(decoder).__name__}, not a {type(part.base_model).__name__}"
        )
    part.set_output_embeddings(head)
    lacking = [name for name, tensor in (*part.named_parameters(), *part.named_buffers()) if tensor.is_meta]
    if lacking:
        raise _not_servable(whole, f"its text part has no {', '.join(lacking[:3])}")
    part.generation_config = whole.generation_config
    return part.eval()


def _config_of_part(config: PretrainedConfig) -> PretrainedConfig | None:
    """The config that a causal language model can be made of."""
    same_as = _SAME_AS.get(config.model_type)
    if same_as is None:
        return config
    values: dict[str, Any] = {**config.to_dict(), "model_type": same_as}
    rope = {**(values.get("rope_parameters") or {})}
    if rope.pop("mrope_section", None) is None or rope.get("rope_type", "default") not in ("default", "mrope"):
        return None  # Frequencies that depend on lengths would have to be told from those of three positions.
    rope.pop("mrope_interleaved", None)
    values["rope_parameters"] = {**rope, "rope_type": "default"}
    made: PretrainedConfig = transformers.AutoConfig.for_model(**values)
    return made


def _auto_class(config: PretrainedConfig) -> Any:
    """The class that loads the whole model."""
    found = next((auto for auto in _WHOLE if type(config) in auto._model_mapping), None)
    if found is None:
        raise ModelNotServableError(
            f"{config.model_type}: transformers loads it as no model that answers text; it cannot be served",
            config.model_type,
        )
    return found


def _prefixes(whole: PreTrainedModel, part: PreTrainedModel) -> list[tuple[str, str]]:
    """Paths of decoder and head in the whole model, each with its path in the part."""
    names = {id(module): name for name, module in whole.named_modules()}
    inner = {id(module): name for name, module in part.named_modules()}
    head = whole.get_output_embeddings()
    return [(names[id(whole.get_decoder())], part.base_model_prefix), (names[id(head)], inner[id(head)])]


def eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """Tokens that end an answer, by the model's folder."""
    generation_config = model.generation_config
    found = generation_config.eos_token_id if generation_config is not None else None
    if found is None:
        found = model.config.get_text_config().eos_token_id
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list) else (found,)


@torch.no_grad()
def _check_same(whole: PreTrainedModel, part: PreTrainedModel, dtype: torch.dtype) -> None:
    """Compare both on text; raises ModelNotServableError past the bound."""
    generator = torch.Generator().manual_seed(0)
    config = part.config
    longest = getattr(config, "max_position_embeddings", None) or max(PROMPT_LENGTHS)
    device = part.get_output_embeddings().weight.device
    special = {value for name, value in whole.config.to_dict().items() if "token" in name and isinstance(value, int)}
    usable = torch.tensor(sorted(set(range(config.vocab_size)) - special))
    for length in PROMPT_LENGTHS:
        ids = usable[torch.randint(len(usable), (1, min(length, longest)), generator=generator)].to(device)
        expected = whole(input_ids=ids, use_cache=False).logits.float()
        error = relative_error(part(input_ids=ids, use_cache=False).logits.float(), expected)
        if not error <= MAX_RELATIVE_ERROR[dtype]:
            raise _not_servable(
                whole, f"its text part alone answers otherwise than the whole model, by {error:.3g} (relative)"
            )


def _not_servable(whole: PreTrainedModel, problem: str) -> ModelNotServableError:
    model_type = whole.config.model_type
    return ModelNotServableError(f"{model_type}: {problem}; it cannot be served", model_type)
