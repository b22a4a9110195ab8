"""Settings of torch's compiler for layers on CUDA."""

from collections.abc import Mapping


def compiler_settings(*, with_kernels: bool) -> Mapping[str, bool]:
    """Settings by the names that `torch._inductor.config` gives them.

    Kernels that need nothing of each other are one launch: that which rotates queries, and that which rotates keys and
    writes both caches. `with_kernels` False leaves them apart, as it leaves out our own.
    """
    return {
        "combo_kernels": with_kernels,
        "combo_kernels_pointwise_only": True,
        # Forms of a kernel that writes to a cache are tried on a copy of it.
        "triton.autotune_pointwise": False,
    }
