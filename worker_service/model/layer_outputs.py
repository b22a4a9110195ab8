"""Outputs of every layer of a model and of every part of a layer, and the first in which two models differ.

Shapes: T tokens, X the size of an output.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from worker_service.model.targets import find_layers

LayerOutputs = dict[str, torch.Tensor]
"""`[T, X]` by the module's path, in the order of computation: attention and MLP stand before their layer."""


@contextmanager
def recording(model: PreTrainedModel) -> Iterator[LayerOutputs]:
    """Collect the outputs of the next forward, in fp32 on the CPU: the embedding, the layers and the layers' parts."""
    parts = [part for layer in find_layers(model) for part in (layer, *layer.children())]
    wanted = {id(module) for module in (model.get_input_embeddings(), *parts)}
    outputs: LayerOutputs = {}
    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if id(module) in wanted:
                hooks.callback(module.register_forward_hook(_keep_in(outputs, path)).remove)
        yield outputs


def _keep_in(outputs: LayerOutputs, path: str) -> Callable[[nn.Module, Any, Any], None]:
    def keep(_module: nn.Module, _arguments: Any, output: Any) -> None:
        found = output[0] if isinstance(output, tuple) else output
        if isinstance(found, torch.Tensor) and found.ndim > 1:
            outputs[path] = found.reshape(-1, found.shape[-1]).float().cpu()

    return keep


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """|found - expected| / |expected|; NaN where either has one."""
    return float((found - expected).norm() / expected.norm().clamp_min(torch.finfo(torch.float32).tiny))


def first_difference(
    found: Mapping[str, torch.Tensor], expected: LayerOutputs, bounds: Mapping[str, float]
) -> tuple[str, float] | None:
    """The first module whose output is off by more than its bound (relative), and by how much."""
    for path, expected_TX in expected.items():
        found_TX = found.get(path)
        if found_TX is None or found_TX.shape != expected_TX.shape:
            continue
        error = relative_error(found_TX, expected_TX)
        if not error <= bounds[path]:
            return path, error
    return None
