"""Forward pass: one program for each tile of query rows of a head, over the keys that its rows may see."""

import triton
import triton.language as tl

from flash_dmattn.triton_kernels.tiles import (
    LN2,
    LOG2E,
    RUN_TIME_NUMBERS,
    find_tile,
    key_tiles_of_rows,
    load_bias,
    load_heads,
    load_words,
    mask_of_head,
    mask_visible,
    rows_of_program,
)

SMALLEST_SCALE = tl.constexpr(2.0**-100)
"""Weighs all keys alike, as 0 does; but 0 times -inf, the score of a hidden key, is NaN."""


@triton.jit
def _forward_steps(
    acc,
    row_sum,
    row_max,
    query,
    key_base,
    value_base,
    tiles,
    words,
    bias,
    word_rows,
    bias_rows,
    rows,
    first_index,
    end_index,
    stride_kn,
    stride_vn,
    scale,
    log2_unit,
    len_k,
    bias_end,
    diagonal,
    HAS_MASK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BIAS_BY_ROW: tl.constexpr,
    BIAS_BY_KEY: tl.constexpr,
    SCALE_IS_NEGATIVE: tl.constexpr,
    EDGE: tl.constexpr,  # whether keys of these tiles may be past len_k or hidden by causality
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Online softmax over the tiles of keys [first_index, end_index)."""
    dims = tl.arange(0, BLOCK_D)
    for index in range(first_index, end_index):
        start = find_tile(tiles, index, HAS_MASK) * BLOCK_N
        keys = start + tl.arange(0, BLOCK_N)
        # Keys past the end repeat the last one: their scores are hidden, and no load needs a condition.
        positions = (tl.minimum(keys, len_k - 1) if EDGE else keys).to(tl.int64)
        key_ptrs = key_base + (dims[:, None] + positions[None, :] * stride_kn)
        key = load_heads(key_ptrs, dims[:, None], HEAD_DIM, BLOCK_D)
        scores = tl.dot(query, key, input_precision="ieee")
        if SCALE_IS_NEGATIVE:
            scores = -scores
        if HAS_BIAS:
            tile = load_bias(bias, bias_rows[:, None], keys[None, :], bias_end, BIAS_BY_ROW, BIAS_BY_KEY, EDGE)
            scores = scores * scale + tile
        if HAS_MASK:
            low, high = load_words(words, word_rows, start, BLOCK_N)
            visible = mask_visible(low[:, None], high[:, None], tl.arange(0, BLOCK_N)[None, :], BLOCK_N)
            scores = tl.where(visible, scores, -float("inf"))
        if EDGE:
            inside = (keys[None, :] < len_k) & (keys[None, :] <= rows[:, None] + diagonal)
            scores = tl.where(inside, scores, -float("inf"))

        new_max = tl.maximum(row_max, tl.max(scores, axis=1))
        # A row that has seen nothing yet has the maximum -inf; shifted by 0 its exponentials are 0, not NaN.
        shift = tl.where(new_max == -float("inf"), 0.0, new_max) * log2_unit
        probabilities = tl.exp2(scores * log2_unit - shift[:, None])
        rescale = tl.exp2(row_max * log2_unit - shift)
        row_sum = row_sum * rescale + tl.sum(probabilities, axis=1)
        value_ptrs = value_base + (positions[:, None] * stride_vn + dims[None, :])
        value = load_heads(value_ptrs, dims[None, :], HEAD_DIM, BLOCK_D)
        acc = tl.dot(probabilities.to(value.dtype), value, acc * rescale[:, None], input_precision="ieee")
        row_max = new_max
    return acc, row_sum, row_max


@triton.jit(do_not_specialize=RUN_TIME_NUMBERS)
def attention_forward_kernel(
    query,  # (B, Lq, H, D)
    key,  # (B, Lk, H_kv, D)
    value,  # (B, Lk, H_kv, D)
    words,  # ({B|1}, {H|H_kv|1}, {Lq|1}, words), int64, or None
    tiles,  # ({B|1}, {H|H_kv|1}, tiles of rows, tiles of keys), int32: those that are alive, or None
    tile_counts,  # ({B|1}, {H|H_kv|1}, tiles of rows, 2), int32, or None
    bias,  # ({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1}), or None
    out,  # (B, Lq, H, D)
    lse,  # (B, H, Lq), float32, contiguous
    stride_qb,
    stride_qm,
    stride_qh,
    stride_kb,
    stride_kn,
    stride_kh,
    stride_vb,
    stride_vn,
    stride_vh,
    stride_ob,
    stride_om,
    stride_oh,
    stride_wb,
    stride_wh,
    stride_wm,
    stride_tb,  # of the lists of tiles, in lists
    stride_bb,
    stride_bh,
    stride_bm,
    scale,  # not negative: what SCALE_IS_NEGATIVE says is its sign
    heads,
    heads_kv,
    mask_heads,
    bias_heads,
    len_q,
    len_k,
    diagonal,  # row r sees keys up to r + diagonal
    HAS_MASK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BIAS_BY_ROW: tl.constexpr,
    BIAS_BY_KEY: tl.constexpr,
    BIAS_STEP: tl.constexpr,  # in which strides of the bias are counted; divides len_k
    HEADS_STEP: tl.constexpr,  # in which strides of (B, L, H, D) are counted
    SCALE_IS_NEGATIVE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write `out` and `lse` of BLOCK_M rows of one head."""
    row_tile, plane, batch, head, head_kv, rows = rows_of_program(heads, heads_kv, len_q, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    # Rows past the end repeat the last one and are not stored.
    positions = tl.minimum(rows, len_q - 1).to(tl.int64)
    query_ptrs = (
        query + (batch * stride_qb + head * stride_qh + positions[:, None] * stride_qm) * HEADS_STEP + dims[None, :]
    )
    query_tile = load_heads(query_ptrs, dims[None, :], HEAD_DIM, BLOCK_D)
    key_base = key + (batch * stride_kb + head_kv * stride_kh) * HEADS_STEP
    value_base = value + (batch * stride_vb + head_kv * stride_vh) * HEADS_STEP
    word_rows = positions
    bias_rows = positions
    if HAS_MASK:
        words, tiles, tile_counts = mask_of_head(
            words,
            tiles,
            tile_counts,
            batch,
            head // (heads // mask_heads),
            row_tile,
            tl.cdiv(len_q, BLOCK_M),
            tl.cdiv(len_k, BLOCK_N),
            stride_wb,
            stride_wh,
            stride_tb,
        )
        word_rows = positions * stride_wm
    if HAS_BIAS:
        bias += (batch * stride_bb + head // (heads // bias_heads) * stride_bh) * BIAS_STEP
        bias_rows = positions * stride_bm * BIAS_STEP
        unit = 1.0
    else:
        # Scores stay products of query and key: their maximum is that of the scaled ones where the scale is positive.
        unit = tl.maximum(scale, SMALLEST_SCALE)

    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    row_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    row_max = tl.full([BLOCK_M], -float("inf"), dtype=tl.float32)
    full_end, end = key_tiles_of_rows(tile_counts, row_tile * BLOCK_M, len_k, diagonal, HAS_MASK, BLOCK_M, BLOCK_N)
    for part in tl.static_range(2):
        acc, row_sum, row_max = _forward_steps(
            acc,
            row_sum,
            row_max,
            query_tile,
            key_base,
            value_base,
            tiles,
            words,
            bias,
            word_rows,
            bias_rows,
            rows,
            0 if part == 0 else full_end,
            full_end if part == 0 else end,
            stride_kn.to(tl.int64) * HEADS_STEP,
            stride_vn.to(tl.int64) * HEADS_STEP,
            scale,
            unit * LOG2E,
            len_k,
            len_k // BIAS_STEP * BIAS_STEP,
            diagonal,
            HAS_MASK,
            HAS_BIAS,
            BIAS_BY_ROW,
            BIAS_BY_KEY,
            SCALE_IS_NEGATIVE,
            part == 1,
            HEAD_DIM,
            BLOCK_D,
            BLOCK_N,
        )

    dead = row_sum == 0.0
    row_sum = tl.where(dead, 1.0, row_sum)
    acc = acc / row_sum[:, None]
    inside = rows < len_q
    out_ptrs = (
        out + (batch * stride_ob + head * stride_oh + positions[:, None] * stride_om) * HEADS_STEP + dims[None, :]
    )
    tl.store(out_ptrs, acc.to(out.dtype.element_ty), mask=inside[:, None] & (dims < HEAD_DIM)[None, :])
    row_lse = tl.where(dead, -float("inf"), row_max * unit + tl.log2(row_sum) * LN2)
    tl.store(lse + plane * len_q + rows, row_lse, mask=inside)
