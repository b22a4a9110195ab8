"""A tiny model whose adapters the interpreted Triton kernels compute answers as the one with the dense form."""

from pathlib import Path

import pytest
import torch

from hotslot.contract.generation import Sampling
from tests.model.tiny_worker import apart, decoded, load_tiny
from tests.support.tiny_models import make_adapter, make_model
from worker_service.engine.messages import Segment
from worker_service.model.cuda import add_slots
from worker_service.model.options import LoadedModel

pytestmark = pytest.mark.triton


def test_a_mixed_batch_has_the_dense_forms_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_model(tmp_path / "base", "llama", is_tied=False)
    modules = ["q_proj", "down_proj", "lm_head"]
    folders = [
        make_adapter(base, tmp_path / "wide", seed=1, r=6, target_modules=modules),
        make_adapter(base, tmp_path / "narrow", seed=2, r=2, target_modules=["k_proj", "lm_head"]),
    ]
    with apart():
        targets = ("q_proj", "k_proj", "down_proj", "lm_head")
        dense = load_tiny(base, target_modules=targets)
        monkeypatch.setattr(add_slots, "can_serve", lambda device, dtype: True)
        listed = load_tiny(base, target_modules=targets)
        grouped = listed.runner.slot_linears["model.layers.1.self_attn.k_proj"]
        assert grouped.group is listed.runner.slot_linears["model.layers.1.self_attn.q_proj"].group is not None
        assert listed.runner.slot_linears["model.layers.1.mlp.down_proj"].group is None
        for loaded in (dense, listed):
            for folder, slots in zip(folders, ((0, 3), (2,)), strict=True):
                list(loaded.runner.write_slots(slots, decoded(loaded, folder)))
        for lengths in ((1, 1, 1, 1), (9, 1, 20, 4)):
            assert torch.allclose(_logits(listed, lengths), _logits(dense, lengths), atol=1e-5)
            assert not torch.allclose(_logits(listed, lengths)[0], _logits(listed, lengths)[1], atol=1e-2)


def _logits(loaded: LoadedModel, lengths: tuple[int, ...]) -> torch.Tensor:
    wide, narrow = ((0, 0.5), (3, 0.5)), ((2, 1.0),)
    segments = [
        Segment(tuple(range(3, 3 + count)), 0, tuple(range(8 * row, 8 * row + 8)), gates, Sampling())
        for row, (count, gates) in enumerate(zip(lengths, (wide, (), narrow, (*wide, *narrow)), strict=True))
    ]
    return loaded.runner.logits(segments)[: len(lengths)].clone()
