"""Two Triton kernels for linears that share an input: `h = A x` for columns that are on, then `y += B · select(h)`.

The columns come as lists of each tile of tokens (active_columns.py), so slots that are off are not read at all, and
neither are ranks beyond an adapter's own. Sums are made in one order, whatever else the step computes: A's products
by fixed parts of the features (splits), these one after the other, columns in ascending order.

Shapes: T tokens, I in_features, G linears of the group, O outputs of one of them, N outputs of all, S slots,
K ranks of one slot, C = S * K columns, P places of all lists, Z splits.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
import triton
import triton.language as tl

IS_INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Running in Triton's interpreter, whose products of bfloat16 are wrong unless both sides are widened first."""


@triton.jit
def shrink(
    x_ptr,  # [T, I]
    a_ptr,  # [G, C, I]
    begins_ptr,
    columns_ptr,
    h_ptr,  # [Z, G, P, TILE], fp32
    num_tokens,
    in_features,
    stride_x,
    num_columns,
    num_places,
    NUM_LINEARS: tl.constexpr,
    SPLIT_FEATURES: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_I: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Products of one tile's tokens with some of its columns, over one split of the features of one linear."""
    tile = tl.program_id(0)
    linear = tl.program_id(2) % NUM_LINEARS
    split = tl.program_id(2) // NUM_LINEARS
    begin = tl.load(begins_ptr + tile)
    end = tl.load(begins_ptr + tile + 1)
    rows_t = tl.arange(0, TILE)
    tokens_t = tile * TILE + rows_t
    a_ptr += linear.to(tl.int64) * num_columns * in_features
    h_ptr += (split * NUM_LINEARS + linear).to(tl.int64) * num_places * TILE
    first_feature = split * SPLIT_FEATURES
    for first in range(begin + tl.program_id(1) * BLOCK_C, end, tl.num_programs(1) * BLOCK_C):
        places_c = first + tl.arange(0, BLOCK_C)
        columns_c = tl.load(columns_ptr + places_c, mask=places_c < end, other=-1).to(tl.int64)
        listed_c = columns_c >= 0
        h_tc = tl.zeros((TILE, BLOCK_C), dtype=tl.float32)
        for offset in range(0, SPLIT_FEATURES, BLOCK_I):
            features_i = first_feature + offset + tl.arange(0, BLOCK_I)
            known_i = features_i < in_features
            x_ti = tl.load(
                x_ptr + tokens_t[:, None] * stride_x + features_i[None, :],
                mask=(tokens_t < num_tokens)[:, None] & known_i[None, :],
                other=0.0,
            )
            a_ic = tl.load(
                a_ptr + columns_c[None, :] * in_features + features_i[:, None],
                mask=listed_c[None, :] & known_i[:, None],
                other=0.0,
            )
            if WIDEN:
                x_ti = x_ti.to(tl.float32)
                a_ic = a_ic.to(tl.float32)
            h_tc = tl.dot(x_ti, a_ic, h_tc, input_precision="ieee")
        tl.store(h_ptr + places_c[None, :].to(tl.int64) * TILE + rows_t[:, None], h_tc, mask=listed_c[None, :])


@triton.jit
def expand(
    h_ptr,  # [Z, G, P, TILE], fp32
    b_ptr,  # [C, O] of each linear, behind each other
    y_ptr,  # [T, N]
    gates_ptr,  # [T, S], fp32
    scales_ptr,  # [G, S], fp32
    ones_ptr,  # [G, C], fp32
    begins_ptr,
    columns_ptr,
    num_tokens,
    num_outputs,
    num_columns,
    stride_gates,
    stride_scales,
    stride_ones,
    num_places,
    end_0,
    end_1,
    end_2,
    NUM_LINEARS: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    SLOT_RANK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Add what adapters add to one tile's tokens, for some outputs of one linear; a linear's outputs end at `end_<n>`.

    Selection is `where`, not a product: whatever A made of a slot that is off for a token never reaches it.
    """
    tile = tl.program_id(0)
    begin = tl.load(begins_ptr + tile)
    end = tl.load(begins_ptr + tile + 1)
    if begin == end:
        return
    block = tl.program_id(1)
    linear = 0
    low = 0
    high = end_0
    if NUM_LINEARS > 1:
        blocks = tl.cdiv(end_0, BLOCK_N)
        if block >= blocks:
            block -= blocks
            linear = 1
            low = end_0
            high = end_1
            if NUM_LINEARS > 2:
                blocks = tl.cdiv(end_1 - end_0, BLOCK_N)
                if block >= blocks:
                    block -= blocks
                    linear = 2
                    low = end_1
                    high = end_2
    rows_t = tl.arange(0, TILE)
    tokens_t = (tile * TILE + rows_t).to(tl.int64)
    known_t = tokens_t < num_tokens
    outputs_n = low + block * BLOCK_N + tl.arange(0, BLOCK_N)
    known_n = outputs_n < high
    # Of one linear alone, so that a slot of it is one stretch of memory.
    b_ptr += tl.cast(low, tl.int64) * num_columns - low
    num_own = high - low
    y_tn = tl.zeros((TILE, BLOCK_N), dtype=tl.float32)
    for first in range(begin, end, BLOCK_C):
        places_c = first + tl.arange(0, BLOCK_C)
        columns_c = tl.load(columns_ptr + places_c, mask=places_c < end, other=-1).to(tl.int64)
        listed_c = columns_c >= 0
        slots_c = columns_c // SLOT_RANK
        known_tc = known_t[:, None] & listed_c[None, :]
        gates_tc = tl.load(gates_ptr + tokens_t[:, None] * stride_gates + slots_c[None, :], mask=known_tc, other=0.0)
        scales_c = tl.load(scales_ptr + linear * stride_scales + slots_c, mask=listed_c, other=0.0)
        factors_tc = gates_tc * scales_c[None, :]
        ones_c = tl.load(ones_ptr + linear * stride_ones + columns_c, mask=listed_c, other=0.0)
        h_tc = tl.zeros((TILE, BLOCK_C), dtype=tl.float32)
        for split in tl.static_range(NUM_SPLITS):
            part_ptr = h_ptr + (split * NUM_LINEARS + linear) * num_places.to(tl.int64) * TILE
            part_tc = tl.load(
                part_ptr + places_c[None, :].to(tl.int64) * TILE + rows_t[:, None], mask=listed_c[None, :], other=0.0
            )
            h_tc += part_tc
        chosen_tc = tl.where(factors_tc != 0.0, (h_tc + ones_c[None, :]) * factors_tc, 0.0)
        b_cn = tl.load(
            b_ptr + columns_c[:, None] * num_own + outputs_n[None, :],
            mask=listed_c[:, None] & known_n[None, :],
            other=0.0,
        )
        chosen_tc = chosen_tc.to(b_ptr.dtype.element_ty)
        if WIDEN:
            chosen_tc = chosen_tc.to(tl.float32)
            b_cn = b_cn.to(tl.float32)
        y_tn = tl.dot(chosen_tc, b_cn, y_tn, input_precision="ieee")
    y_ptrs = y_ptr + tokens_t[:, None] * num_outputs + outputs_n[None, :]
    known_tn = known_t[:, None] & known_n[None, :]
    before_tn = tl.load(y_ptrs, mask=known_tn, other=0.0)
    tl.store(y_ptrs, (before_tn.to(tl.float32) + y_tn).to(y_ptr.dtype.element_ty), mask=known_tn)
