"""Launches of a layer on CUDA, counted by the compiler's scheduler after decomposition and fusion.

The compiler here has no CUDA: its nodes are counted after fusion by its rules for CPUs, but for `cat`, which it
computes inside other kernels on CUDA and has to be told to here. Each node would be a kernel; products are one launch
each, our operators as many as they launch. Attention in splits joins them in one launch more, which is torch's.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch._inductor import config
from torch._inductor.ir import MultiOutput
from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode

from tests.model.tiny_worker import apart
from tests.support.device_on_cpu import loaded_as_on_cuda

MOST_OF_BASE, MOST_WITH_ADAPTERS = 11, 19
"""As found; one more each than was aimed at, since layers are compiled apart: the sum at a layer's end is a kernel."""
CACHE_WRITES = 2
"""Keys and values; each is counted apart from the layer."""
LAUNCHES = {"attend_varlen": 1 + CACHE_WRITES, "add_slots": 2}


@pytest.mark.slow
def test_a_layer_launches_no_more_than_its_bound(tmp_path: Path) -> None:
    layers: list[Counter[str]] = []

    def count(nodes: list[Any]) -> list[Any]:
        found: Counter[str] = Counter()
        for node in nodes:
            if isinstance(node, NopKernelSchedulerNode) or isinstance(node.node, MultiOutput):
                continue
            if isinstance(node, ExternKernelSchedulerNode):
                overload = getattr(node.node, "op_overload", None)
                name = overload.name().partition("::")[2] if overload is not None else type(node.node).__name__
                found[name] += LAUNCHES.get(name, 1)
            else:
                found["fused"] += 1
        if "attend_varlen" in found:
            layers.append(found)
        return nodes

    with (
        apart(),
        config.patch(_post_fusion_custom_pass=count, force_disable_caches=True, force_pointwise_cat=True),
        loaded_as_on_cuda("kernels", tmp_path, token_buckets=(8,), compile=True, target_modules=()),
    ):
        pass
    print(layers)  # noqa: T201 (the figures, shown by -s)
    of_base = [layer for layer in layers if "add_slots" not in layer]
    with_adapters = [layer for layer in layers if "add_slots" in layer]
    assert of_base
    assert with_adapters
    assert max(layer.total() - CACHE_WRITES for layer in of_base) <= MOST_OF_BASE
    assert max(layer.total() - CACHE_WRITES for layer in with_adapters) <= MOST_WITH_ADAPTERS
