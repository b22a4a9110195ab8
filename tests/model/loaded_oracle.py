"""Which linears transformers loads from a checkpoint, told by models without weights."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from hotslot.formats.base_model import modules_of
from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
from hotslot.formats.loaded_modules import with_absences
from hotslot.formats.safetensors_header import TensorEntry
from worker_service.model.observed import loaded_paths

SMALL = {"num_hidden_layers": 4}
FEW = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_num_experts": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as the hub has it, and the model that it loads as."""

    model: PreTrainedModel
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    """Of every tensor, under the names that `save_pretrained` writes."""

    @classmethod
    def of(cls, config: PretrainedConfig, auto: Any = transformers.AutoModelForCausalLM) -> "Checkpoint":
        """That of a config, without weights."""
        with torch.device("meta"):
            model = auto.from_config(config)
        state = revert_weight_conversion(model, model.state_dict())
        tied = set(model.all_tied_weights_keys)
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if name not in tied}
        return cls(model, config.to_dict(), shapes)

    def with_more(self, shapes: Mapping[str, tuple[int, ...]]) -> "Checkpoint":
        """The same with tensors that no model loads."""
        return Checkpoint(self.model, self.config, {**self.shapes, **shapes})

    def spec(self) -> BaseSpec:
        """The spec as a folder with these tensors has it."""
        entries = [TensorEntry(name, "F32", shape, 0, 0) for name, shape in self.shapes.items()]
        model_type = str(self.config["model_type"])
        return with_absences(BaseSpec("oracle", model_type, "f", modules_of(entries, model_type)), self.config)

    def loaded(self, spec: BaseSpec) -> dict[str, bool]:
        """Whether each linear of the spec is one of the text model that is loaded."""
        paths = loaded_paths(self.model, spec.modules)
        decoder = self.model.get_decoder()
        if not isinstance(decoder, transformers.PreTrainedModel):  # ModernBERT calls its head the decoder
            decoder = self.model.base_model
        text = {id(module) for module in decoder.modules()}
        text.add(id(self.model.get_output_embeddings()))
        modules = dict(self.model.named_modules())
        return {
            path: isinstance(found := modules.get(paths.get(path, "")), nn.Linear | transformers.pytorch_utils.Conv1D)
            and id(found) in text
            for path in (module.path for module in spec.modules if module.kind is ModuleKind.LINEAR)
        }


def small(config_class: type[PretrainedConfig]) -> PretrainedConfig:
    """A config with few layers and experts, where its class allows that."""
    config = _first(lambda: config_class(**SMALL), config_class)
    text = config.get_text_config(decoder=True)
    for name, number in FEW.items():
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, number)
    return config


def _first(*makers: Any) -> Any:
    for make in makers[:-1]:
        try:
            return make()
        except (TypeError, ValueError, AttributeError, KeyError, AssertionError):
            continue
    return makers[-1]()


def wrong(spec: BaseSpec, loaded: Mapping[str, bool]) -> list[str]:
    """The linears of which rules and transformers say different things."""
    return [m.path for m in linears(spec.modules) if (m.absence is None) != loaded[m.path]]


def linears(modules: Iterable[BaseModule]) -> list[BaseModule]:
    """Those of some modules."""
    return [module for module in modules if module.kind is ModuleKind.LINEAR]
