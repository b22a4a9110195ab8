"""Wide arithmetic computes to the bit what a widened copy of a model does, and widens a piece at a time."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, PreTrainedModel

from tests.model.architectures import CASES
from tests.support.tiny_models import VOCAB, auto_class, save_model
from worker_service.model import wide_arithmetic
from worker_service.model.wide_arithmetic import WideArithmetic

SERVED = [name for name, case in CASES.items() if not case.refused]
IDS = torch.randint(VOCAB, (1, 20), generator=torch.Generator().manual_seed(1))


class Widened(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """Notes the sizes of what is converted beneath it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.to.dtype and args[0].dtype == torch.bfloat16:
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits[0]
    return found


def load(base: Path, dtype: torch.dtype) -> PreTrainedModel:
    model: PreTrainedModel = auto_class(AutoConfig.from_pretrained(base)).from_pretrained(base, dtype=dtype).eval()
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", SERVED)
def test_it_computes_what_a_widened_copy_computes(model_type: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = load(save_model(tmp_path, CASES[model_type].architecture), dtype)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    plain = logits(model)
    with WideArithmetic(torch.float32):
        wide = logits(model)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert wide.dtype == torch.float32
    assert torch.equal(wide, logits(model.float()))
    assert not torch.equal(wide, plain.float()), "the comparison would show nothing"


@pytest.mark.parametrize("model_type", SERVED)
def test_fp32_is_computed_in_fp64(model_type: str, tmp_path: Path) -> None:
    model = load(save_model(tmp_path, CASES[model_type].architecture), torch.float32)
    with WideArithmetic(torch.float64):
        wide = logits(model)
    assert wide.dtype == torch.float64
    error = float((logits(model) - wide).norm() / wide.norm())
    assert 1e-9 < error < 1e-5


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "qwen2"])
def test_matrices_are_widened_piece_by_piece(model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(save_model(tmp_path, CASES[model_type].architecture), torch.bfloat16)
    whole, pieces = Widened(), Widened()
    with whole, WideArithmetic(torch.float32):
        expected = logits(model)
    assert max(whole.sizes) >= max(p.numel() for name, p in model.named_parameters() if ".0." in name)
    monkeypatch.setattr(wide_arithmetic, "MAX_PIECE_ELEMENTS", 300)
    with pieces, WideArithmetic(torch.float32):
        found = logits(model)
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    # Beside the pieces there are rows of the embedding, one for each token.
    assert 250 < max(pieces.sizes) <= max(300, IDS.numel() * model.config.hidden_size) < max(whole.sizes)
