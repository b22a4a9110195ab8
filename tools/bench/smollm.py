"""Shapes of SmolLM2-135M, the model that is measured."""

LAYERS = 30
HEADS, KEY_HEADS, HEAD_SIZE = 9, 3, 64
SHAPES = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (576, 192),
    "self_attn.v_proj": (576, 192),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (576, 1536),
    "mlp.up_proj": (576, 1536),
    "mlp.down_proj": (1536, 576),
}
"""(in_features, out_features) of its linears."""
WEIGHT_BYTES = 269_030_016
"""Parameters that a token reads, in bfloat16; the embedding is the head."""
KV_BYTES = LAYERS * 2 * KEY_HEADS * HEAD_SIZE * 2
"""Keys and values of one token, in bfloat16."""
ADAPTER_BYTES_A_RANK = LAYERS * 2 * sum(num_in + num_out for num_in, num_out in SHAPES.values())
"""Bytes of one rank on every linear, in bfloat16."""
