"""Names of modules that a base has in another layout: fused where the adapter is split, split where it is fused."""

from collections.abc import Container

_FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "Wqkv": ("q_proj", "k_proj", "v_proj"),
    "W_pack": ("q_proj", "k_proj", "v_proj"),
    "c_attn": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
_BLOCKS = ("self_attn", "attention", "attn", "self_attention", "mlp", "feed_forward")
_EXPERTS = ("experts", "shared_expert", "shared_experts", "block_sparse_moe")


def layout_difference(path: str, base_paths: Container[str], has_experts: bool) -> str:
    """What differs between the base and an adapter that has this module, in a clause; empty where nothing is known."""
    parent, _, leaf = path.rpartition(".")
    above = parent.rpartition(".")[0]
    for fused, split in _FUSED.items():
        for block in (parent, *(f"{above}.{block}" for block in _BLOCKS)):
            if leaf in split and f"{block}.{fused}" in base_paths:
                others = ", ".join(split)
                return f"the base has {others} as one linear, {block}.{fused}, and the adapter has them apart"
            if leaf == fused and f"{block}.{split[0]}" in base_paths:
                names = ", ".join(split)
                return f"the base has {names} apart (as {block}.{split[0]}), and the adapter has them as one linear"
    if not set(path.split(".")).isdisjoint(_EXPERTS):
        if has_experts:
            return "the base has its experts under other names, or as one parameter for all of them"
        return "the base has no experts (is it the dense model of the same family?)"
    return ""
