"""A tiny model on the CPU with the steps of CUDA: planned in one buffer, one step ahead, ready to be captured."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.tiny_worker import load_tiny
from tests.support import emulated_varlen
from tests.support.tiny_models import make_adapter, make_model
from worker_service.model import varlen_attention
from worker_service.model.cuda import add_slots
from worker_service.model.options import LoadedModel

FORMS = ("portable", "kernels")
"""Attention and adapters by operators of torch, or as the kernels on CUDA take them, which are emulated."""

_LIBRARY = torch.library.Library("hotslot_tests", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "flash(Tensor q, Tensor k, Tensor v, Tensor cu_q, Tensor cu_k, int max_q, int max_k, float dropout, bool causal, "
    "bool mask, *, float scale, int window_size_left, int window_size_right, Tensor seqused_k, Tensor block_table, "
    "int num_splits) -> Tensor"
)
_LIBRARY.impl(  # type: ignore[no-untyped-call]
    "flash", lambda *args, **kwargs: emulated_varlen.flash_attention_forward(*args, **kwargs)[0], "CPU"
)


class _NoKernels:
    """Stands for the Triton kernels, which do not run here: launches add nothing."""

    IS_INTERPRETED = False

    def __getattr__(self, name: str) -> Any:
        return _Launcher()


class _Launcher:
    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **kwargs: None


class _Flash:
    """Stands for torch's operator: one, as on CUDA, so that nothing inside it counts as the step's."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __call__(self, *args: Any, return_debug_mask: bool, **kwargs: Any) -> tuple[torch.Tensor]:
        return (torch.ops.hotslot_tests.flash(*args, return_debug_mask, **kwargs),)

    def __getattr__(self, name: str) -> Any:
        """Whatever the compiler asks of it."""
        return getattr(self._real, name)


@contextmanager
def loaded_as_on_cuda(form: str, folder: Path, **changes: Any) -> Iterator[LoadedModel]:
    """The model, as long as the block lasts: emulated kernels are there no longer."""
    base = make_model(folder / "base", "llama", is_tied=False)
    make_adapter(base, folder / "adapter", seed=3, r=4, target_modules=["q_proj", "down_proj", "lm_head"])
    targets = ("q_proj", "k_proj", "down_proj", "lm_head")
    options = {"runs_ahead": True, "cpu_kernels": False, "token_buckets": (1, 8, 32), "target_modules": targets}
    with pytest.MonkeyPatch.context() as patch:
        if form == "kernels":
            patch.setattr(varlen_attention, "can_serve", lambda device, dtype: True)
            patch.setattr(torch.ops.aten, "_flash_attention_forward", _Flash(torch.ops.aten._flash_attention_forward))
            patch.setattr(add_slots, "can_serve", lambda device, dtype: True)
            patch.setattr(add_slots, "_kernels", _NoKernels)
            options |= {"dtype": "bfloat16", "block_tokens": 256, "kv_tokens": 8 * 256}
        yield load_tiny(base, **{**options, **changes})
