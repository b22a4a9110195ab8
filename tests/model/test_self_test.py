"""A model that the worker would get wrong is refused at its start, with the part that is the first to differ."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from shared.errors import InvalidRequestError, ModelNotServableError
from tests.model.architectures import CASES, WINDOW
from tests.model.tiny_worker import MAX_SEQUENCE_TOKENS, apart, load_tiny
from tests.support.tiny_models import Architecture, save_model
from worker_service.engine.limits import EngineLimits
from worker_service.model import attention
from worker_service.model.adapt import add_slots
from worker_service.model.self_test import prompt_lengths

Break = Callable[[nn.Module], None]


def scale_output(module: nn.Module) -> None:
    """Wrong by a percent or two, which no rounding in fp32 is."""
    module.register_forward_hook(
        lambda _m, _i, out: (out[0] * 1.02, *out[1:]) if isinstance(out, tuple) else out * 1.02
    )


def scale_weight(module: nn.Module) -> None:
    assert isinstance(module, nn.Linear)
    module.weight.data *= 1.02


def poison_output(module: nn.Module) -> None:
    module.register_forward_hook(lambda _m, _i, out: out * float("nan"))


def break_when_adapted(monkeypatch: pytest.MonkeyPatch, path: str, break_it: Break) -> None:
    """Make a module wrong for the worker, and not for plain transformers before it."""

    def add_slots_to_broken(model: Any, *arguments: Any) -> Any:
        added = add_slots(model, *arguments)
        break_it(model.get_submodule(path))
        return added

    monkeypatch.setattr("worker_service.model.loading.add_slots", add_slots_to_broken)


@pytest.mark.parametrize(
    ("path", "break_it", "kind"),
    [
        ("model.layers.1.self_attn", scale_output, "LlamaAttention"),
        ("model.layers.1.mlp", scale_output, "LlamaMLP"),
        ("model.layers.0.mlp", poison_output, "LlamaMLP"),
        ("model.embed_tokens", scale_output, "Embedding"),
    ],
)
def test_the_error_names_the_first_part_that_differs(
    path: str, break_it: Break, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_model(tmp_path, CASES["llama"].architecture)

    break_when_adapted(monkeypatch, path, break_it)
    with apart(), pytest.raises(ModelNotServableError, match=rf"first to differ is {path} \({kind}\)") as caught:
        load_tiny(base)
    assert caught.value.subject == path


def test_a_wrong_head_is_told_from_wrong_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_model(tmp_path, CASES["llama"].architecture)
    break_when_adapted(monkeypatch, "lm_head", scale_weight)
    with apart(), pytest.raises(ModelNotServableError, match="every layer agrees"):
        load_tiny(base)


@pytest.mark.slow
def test_a_compiled_model_is_searched_uncompiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_model(tmp_path, CASES["llama"].architecture)
    break_when_adapted(monkeypatch, "model.layers.1.mlp", scale_output)
    with apart(), pytest.raises(ModelNotServableError, match=r"first to differ is model\.layers\.1\.mlp"):
        load_tiny(base, compile=True, token_buckets=(32,))


def test_capped_scores_that_were_ignored_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ignore(q: Any, k: Any, v: Any, scale: float, window: int, _softcap: float) -> torch.Tensor:
        return attention._attend_one(q, k, v, scale, window)

    monkeypatch.setattr(attention, "_attend_capped", ignore)
    base = save_model(tmp_path, CASES["gemma2"].architecture)
    with apart(), pytest.raises(ModelNotServableError, match=r"layers\.0\.self_attn \(Gemma2Attention\)"):
        load_tiny(base)


def test_a_window_that_does_not_reach_our_attention_is_refused_beyond_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_model(tmp_path, CASES["exaone4"].architecture)
    module = transformers.models.exaone4.modeling_exaone4.Exaone4Attention
    forward = module.forward

    def forward_without_window(self: Any, *arguments: Any, **keywords: Any) -> Any:
        self.sliding_window = None
        return forward(self, *arguments, **keywords)

    monkeypatch.setattr(module, "forward", forward_without_window)
    with apart(), pytest.raises(ModelNotServableError, match=f"HOTSLOT_MAX_SEQUENCE_TOKENS={WINDOW}"):
        load_tiny(base)
    with apart():
        assert load_tiny(base, max_sequence_tokens=WINDOW, token_buckets=(8,)).limits.max_sequence_tokens == WINDOW


def test_rotary_frequencies_that_change_with_the_length_bound_the_context(tmp_path: Path) -> None:
    config = CASES["phi3"].architecture.config
    half = [1.0] * 4
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": half, "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 32, "factor": 2.0}  # fmt: skip
    changed = {**config, "sliding_window": None, "original_max_position_embeddings": 32, "rope_parameters": rope}
    base = save_model(tmp_path, Architecture(transformers.Phi3Config, changed))
    with apart():
        assert load_tiny(base, max_sequence_tokens=0, token_buckets=(8, 32)).limits.max_sequence_tokens == 32
        with pytest.raises(InvalidRequestError, match=f"found {MAX_SEQUENCE_TOKENS}, the model's context has 32"):
            load_tiny(base)


@pytest.mark.parametrize(
    ("max_running", "kv_tokens", "max_step_tokens", "expected"),
    [(8, 512, 64, (3, 17, 9)), (2, 512, 64, (3, 17)), (8, 512, 8, (1, 4, 2)), (8, 24, 64, (3, 17)), (8, 8, 8, (1,))],
)
def test_prompts_fit_into_a_step_a_sequence_and_the_cache(
    max_running: int, kv_tokens: int, max_step_tokens: int, expected: tuple[int, ...]
) -> None:
    limits = EngineLimits(
        num_slots=1, slot_rank=1, max_running=max_running, max_waiting=1, num_blocks=kv_tokens // 4, block_tokens=4,
        max_step_tokens=max_step_tokens, max_sequence_tokens=min(kv_tokens, 64),
    )  # fmt: skip
    assert prompt_lengths(limits) == expected
