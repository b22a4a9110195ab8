"""Adapters of any rank on any modules, made without PEFT and without a checkpoint."""

import random

import torch

from hotslot.ids import Digest
from worker_service.model.options import LoadedModel
from worker_service.model.weights import HostAdapter, HostModule


def random_adapter(loaded: LoadedModel, number: int, max_rank: int | None = None) -> HostAdapter:
    """Any rank up to the largest, any targets; the same number makes the same adapter."""
    rng = random.Random(number)
    generator = torch.Generator().manual_seed(number)
    rank = rng.randint(1, max_rank or loaded.max_rank)
    served = sorted({path.rpartition(".")[2] for path in loaded.runner.slot_linears})
    names = rng.sample(served, rng.randint(1, len(served)))
    modules = {}
    for path, linear in loaded.runner.slot_linears.items():
        if path.rpartition(".")[2] in names and rng.random() < 0.7:
            a_RI = torch.randn(rank, linear.in_features, generator=generator) * 0.02
            b_RO = torch.randn(rank, linear.out_features, generator=generator) * 0.02
            modules[path] = HostModule(a_RI, b_RO, rng.choice([0.5, 1.0, 2.0, 3.7]))
    size_bytes = sum(m.a_RI.nbytes + m.b_RO.nbytes for m in modules.values())
    return HostAdapter(Digest(f"sha256:{number:064x}"), rank, size_bytes, modules)
