"""A model that the worker would get wrong is refused at its start, with the part that is the first to differ."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from hotslot.errors import InvalidRequestError, ModelNotServableError
from tests.model.architectures import CASES, WINDOW
from tests.model.tiny_worker import MAX_SEQUENCE_TOKENS, apart, load_tiny
from tests.support.tiny_models import Architecture, save_model
from worker_service.model import adapt, attention, attention_sites
from worker_service.model.adapt import add_slots
from worker_service.model.self_test import typical_error

Break = Callable[[nn.Module], None]
BUCKETS: dict[str, dict[str, Any]] = {
    "1": {"token_buckets": (1,), "max_sequences": 1},
    "1,4": {"token_buckets": (1, 4), "max_sequences": 4},
    "1,4,8": {"token_buckets": (1, 4, 8)},
    "1,4,8,32,64": {"token_buckets": (1, 4, 8, 32, 64)},
}
SERVED = [name for name, case in CASES.items() if not case.refused]
IGNORED = {
    "a window of mistral": ("mistral", {"sliding_window": None}),
    "a window of exaone4": ("exaone4", {"sliding_window": None}),
    "a window of gemma3": ("gemma3_text", {"sliding_window": None}),
    "the cap of gemma2": ("gemma2", {"softcap": None}),
    "the scale of granite": ("granite", {"scaling": None}),
    "the sinks of gpt_oss": ("gpt_oss", {}),
}
"""What of an architecture's calls of attention the worker would ignore, were it not looked for."""


def scale_output(module: nn.Module) -> None:
    """Wrong by a percent or two, which no rounding in fp32 is."""
    module.register_forward_hook(
        lambda _m, _i, out: (out[0] * 1.02, *out[1:]) if isinstance(out, tuple) else out * 1.02
    )


def scale_weight(module: nn.Module) -> None:
    assert isinstance(module, nn.Linear)
    module.weight.data *= 1.02


def scale_parameters(module: nn.Module) -> None:
    """Wrong where hooks are not heard: compiled code is made of parameters and operators."""
    for parameter in module.parameters():
        parameter.data *= 1.02


def poison_output(module: nn.Module) -> None:
    module.register_forward_hook(lambda _m, _i, out: out * float("nan"))


def drop_output(module: nn.Module) -> None:
    module.register_forward_hook(lambda _m, _i, out: (out[0] * 0, *out[1:]) if isinstance(out, tuple) else out * 0)


def round_otherwise(module: nn.Module) -> None:
    """Off by at most one unit in the last place, as products are that another processor adds up in another order."""
    generator = torch.Generator().manual_seed(0)

    def off_by_a_unit(_m: nn.Module, _i: Any, out: torch.Tensor) -> torch.Tensor:
        units = torch.randint(-1, 2, out.shape, generator=generator)
        return (out.float() * (1 + units * torch.finfo(out.dtype).eps)).to(out.dtype)

    module.register_forward_hook(off_by_a_unit)


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
    break_when_adapted(monkeypatch, "model.layers.1.mlp.down_proj", scale_parameters)
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


@pytest.mark.parametrize("buckets", BUCKETS)
def test_a_sound_model_that_rounds_badly_starts_whatever_a_step_holds(
    buckets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = Architecture(transformers.LlamaConfig, {**CASES["llama"].architecture.config, "num_hidden_layers": 24})
    base = save_model(tmp_path, deep)
    break_when_adapted(monkeypatch, "model.layers.0.mlp.down_proj", round_otherwise)
    with apart():
        load_tiny(base, dtype="bfloat16", **BUCKETS[buckets])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("buckets", ["1", "1,4,8"])
@pytest.mark.parametrize("part", ["self_attn", "mlp"])
def test_a_wrong_part_is_told_in_any_element_type_and_steps(
    part: str, buckets: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_model(tmp_path, CASES["llama"].architecture)
    break_when_adapted(monkeypatch, f"model.layers.1.{part}", drop_output)
    with apart(), pytest.raises(ModelNotServableError, match=rf"first to differ is model\.layers\.1\.{part} "):
        load_tiny(base, dtype=dtype, **BUCKETS[buckets])


@pytest.mark.parametrize("buckets", ["1", "1,4,8", "1,4,8,32,64"])
@pytest.mark.parametrize("ignored", IGNORED)
def test_an_architecture_of_which_something_is_ignored_is_told_in_any_steps(
    ignored: str, buckets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, changes = IGNORED[ignored]
    compute = attention.attention_interface

    def ignore(*arguments: Any, **keywords: Any) -> Any:
        return compute(*arguments, **{**keywords, **changes})

    monkeypatch.setattr(adapt, "attention_interface", ignore)
    monkeypatch.setattr(attention_sites, "HARMLESS", attention_sites.HARMLESS | {"s_aux"})
    base = save_model(tmp_path, CASES[name].architecture)
    with apart(), pytest.raises(ModelNotServableError, match=r"layers\.[01]\.self_attn"):
        load_tiny(base, dtype="bfloat16", **BUCKETS[buckets])


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mixtral", "gpt2"])
@pytest.mark.parametrize("buckets", BUCKETS)
def test_sound_models_start_with_any_buckets(model_type: str, buckets: str, tmp_path: Path) -> None:
    start_in_halves(model_type, buckets, tmp_path)


def test_a_token_that_rounding_gives_to_another_expert_is_no_reason_to_refuse(tmp_path: Path) -> None:
    # With this seed, one of twenty tokens goes another way than in plain transformers.
    base = save_model(tmp_path, CASES["qwen3_moe"].architecture, 3)
    with apart():
        load_tiny(base, dtype="bfloat16", **BUCKETS["1"])


def test_outliers_do_not_count_and_more_than_a_few_wrong_answers_do() -> None:
    expected_PV = torch.randn(12, 50, generator=torch.Generator().manual_seed(0))
    found_PV = expected_PV * 1.01
    assert typical_error(found_PV, expected_PV) == pytest.approx(0.01, rel=1e-3)
    found_PV[:2] = 0
    assert typical_error(found_PV, expected_PV) == pytest.approx(0.01, rel=1e-3)
    found_PV[2] = 0
    assert typical_error(found_PV, expected_PV) > 0.3
    found_PV[0] = torch.nan
    assert math.isnan(typical_error(found_PV, expected_PV))
    assert typical_error(found_PV[1:2], expected_PV[1:2]) == 1.0, "a single one always counts"


@pytest.mark.slow
@pytest.mark.parametrize("model_type", SERVED)
def test_every_served_architecture_starts_with_any_buckets(model_type: str, tmp_path: Path) -> None:
    for seed in range(3):
        for buckets in BUCKETS:
            start_in_halves(model_type, buckets, tmp_path / str(seed), seed)


def start_in_halves(model_type: str, buckets: str, folder: Path, seed: int = 0) -> None:
    base = save_model(folder, CASES[model_type].architecture, seed)
    for dtype in ("bfloat16", "float16"):
        with apart():
            load_tiny(base, dtype=dtype, **BUCKETS[buckets])
