"""Backward pass by tiles of keys, which sums over rows: gradients of key, value and a bias that all rows share.

The scores are computed again, here and by tiles of query rows, so only a bias gradient that is summed over the batch or
over heads needs atomic additions.
"""

import triton
import triton.language as tl

from flash_dmattn.triton_kernels.row_statistics import load_row_statistics, probabilities_of
from flash_dmattn.triton_kernels.tiles import (
    RUN_TIME_NUMBERS,
    find_tile,
    load_bias,
    load_heads,
    load_words,
    mask_of_head,
    mask_visible,
    row_tiles_of_keys,
)


@triton.jit
def _key_gradient_steps(
    grad_key,
    grad_value,
    grad_bias,
    key,
    value,
    query_base,
    grad_out_base,
    lse,
    row_dots,
    tiles,
    words,
    bias,
    keys,
    first_key,
    first_index,
    end_index,
    stride_qm,
    stride_gm,
    stride_wm,
    stride_bm,
    scale,
    len_q,
    len_k,
    bias_end,
    diagonal,
    HAS_MASK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BIAS_BY_ROW: tl.constexpr,
    BIAS_BY_KEY: tl.constexpr,
    EDGE: tl.constexpr,  # whether keys may be past len_k or hidden by causality from rows of these tiles
    NEEDS_KEYS: tl.constexpr,
    NEEDS_BIAS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add what the tiles of rows [first_index, end_index) contribute; `grad_bias` is to be summed over its rows yet."""
    dims = tl.arange(0, BLOCK_D)
    for index in range(first_index, end_index):
        rows = find_tile(tiles, index, HAS_MASK) * BLOCK_M + tl.arange(0, BLOCK_M)
        positions = tl.minimum(rows, len_q - 1).to(tl.int64)
        query_ptrs = query_base + (positions[:, None] * stride_qm + dims[None, :])
        query = load_heads(query_ptrs, dims[None, :], HEAD_DIM, BLOCK_D)
        row_lse, row_dot = load_row_statistics(lse, row_dots, rows, len_q)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")
        if HAS_BIAS:
            bias_rows = (positions * stride_bm)[:, None]
            tile = load_bias(bias, bias_rows, keys[None, :], bias_end, BIAS_BY_ROW, BIAS_BY_KEY, EDGE)
            scores = scores * scale + tile
        probabilities = probabilities_of(scores, row_lse[:, None], scale, HAS_BIAS)
        if HAS_MASK:
            low, high = load_words(words, positions * stride_wm, first_key, BLOCK_N)
            visible = mask_visible(low[:, None], high[:, None], tl.arange(0, BLOCK_N)[None, :], BLOCK_N)
            probabilities = tl.where(visible, probabilities, 0.0)
        if EDGE:
            inside = (keys[None, :] < len_k) & (keys[None, :] <= rows[:, None] + diagonal)
            probabilities = tl.where(inside, probabilities, 0.0)
        grad_out_ptrs = grad_out_base + (positions[:, None] * stride_gm + dims[None, :])
        grad_out = load_heads(grad_out_ptrs, dims[None, :], HEAD_DIM, BLOCK_D)
        if NEEDS_KEYS:
            weights = tl.trans(probabilities.to(grad_out.dtype))
            grad_value = tl.dot(weights, grad_out, grad_value, input_precision="ieee")
        grad_probabilities = tl.dot(grad_out, tl.trans(value), input_precision="ieee")
        grad_scores = probabilities * (grad_probabilities - row_dot[:, None])
        if NEEDS_KEYS:
            grad_key = tl.dot(tl.trans(grad_scores.to(query.dtype)), query, grad_key, input_precision="ieee")
        if NEEDS_BIAS:
            grad_bias += grad_scores
    return grad_key, grad_value, grad_bias


@triton.jit(do_not_specialize=RUN_TIME_NUMBERS)
def key_gradient_kernel(
    query,  # (B, Lq, H, D)
    key,  # (B, Lk, H_kv, D)
    value,  # (B, Lk, H_kv, D)
    words,  # ({B|1}, {H|H_kv|1}, {Lq|1}, words), int64, or None
    tiles,  # ({B|1}, {H|H_kv|1}, tiles of keys, tiles of rows), int32: those that are alive, or None
    tile_counts,  # ({B|1}, {H|H_kv|1}, tiles of keys, 2), int32, or None
    bias,  # ({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1}), or None
    grad_out,  # (B, Lq, H, D)
    lse,  # (B, H, Lq), float32, contiguous
    row_dots,  # (B, H, Lq), float32, contiguous
    grad_key,  # (B, Lk, H_kv, D), contiguous, or None
    grad_value,  # (B, Lk, H_kv, D), contiguous, or None
    grad_bias,  # ({B|1}, {H|H_kv|1}, 1, Lk), float32, zeros, or None
    stride_qb,
    stride_qm,
    stride_qh,
    stride_kb,
    stride_kn,
    stride_kh,
    stride_vb,
    stride_vn,
    stride_vh,
    stride_gb,
    stride_gm,
    stride_gh,
    stride_wb,
    stride_wh,
    stride_wm,
    stride_tb,  # of the lists of tiles, in lists
    stride_bb,
    stride_bh,
    stride_bm,
    stride_dbb,
    stride_dbh,
    scale,
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
    NEEDS_KEYS: tl.constexpr,  # grad_key and grad_value
    NEEDS_BIAS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write the gradients of BLOCK_N keys of one kv head, over all heads that read it."""
    key_tiles = tl.cdiv(len_k, BLOCK_N)
    pid = tl.program_id(0)
    # First keys first: under causality they take longest.
    key_tile = pid % key_tiles
    first_key = key_tile * BLOCK_N
    plane = (pid // key_tiles).to(tl.int64)
    batch = plane // heads_kv
    head_kv = plane % heads_kv
    group = heads // heads_kv

    keys = first_key + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    positions = tl.minimum(keys, len_k - 1).to(tl.int64)[:, None]
    key_offsets = (batch * stride_kb + head_kv * stride_kh + positions * stride_kn) * HEADS_STEP
    key_rows = load_heads(key + key_offsets + dims[None, :], dims[None, :], HEAD_DIM, BLOCK_D)
    value_offsets = (batch * stride_vb + head_kv * stride_vh + positions * stride_vn) * HEADS_STEP
    value_rows = load_heads(value + value_offsets + dims[None, :], dims[None, :], HEAD_DIM, BLOCK_D)

    key_sum = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    value_sum = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    for head in range(head_kv * group, head_kv * group + group):
        head_tiles = tiles
        head_counts = tile_counts
        head_words = words
        head_bias = bias
        if HAS_MASK:
            head_words, head_tiles, head_counts = mask_of_head(
                words,
                tiles,
                tile_counts,
                batch,
                head // (heads // mask_heads),
                key_tile,
                key_tiles,
                tl.cdiv(len_q, BLOCK_M),
                stride_wb,
                stride_wh,
                stride_tb,
            )
        if HAS_BIAS:
            head_bias = bias + (batch * stride_bb + head // (heads // bias_heads) * stride_bh) * BIAS_STEP
        statistics = (batch * heads + head) * len_q
        # Summed over rows once, at the end: in each step that would take as long as a product.
        bias_sum = tl.zeros([BLOCK_M, BLOCK_N] if NEEDS_BIAS else [1, 1], dtype=tl.float32)
        first, first_full, end = row_tiles_of_keys(
            head_counts, first_key, len_q, len_k, diagonal, HAS_MASK, BLOCK_M, BLOCK_N
        )
        for part in tl.static_range(2):
            key_sum, value_sum, bias_sum = _key_gradient_steps(
                key_sum,
                value_sum,
                bias_sum,
                key_rows,
                value_rows,
                query + (batch * stride_qb + head * stride_qh) * HEADS_STEP,
                grad_out + (batch * stride_gb + head * stride_gh) * HEADS_STEP,
                lse + statistics,
                row_dots + statistics,
                head_tiles,
                head_words,
                head_bias,
                keys,
                first_key,
                first if part == 0 else first_full,
                first_full if part == 0 else end,
                stride_qm.to(tl.int64) * HEADS_STEP,
                stride_gm.to(tl.int64) * HEADS_STEP,
                stride_wm,
                stride_bm.to(tl.int64) * BIAS_STEP,
                scale,
                len_q,
                len_k,
                len_k // BIAS_STEP * BIAS_STEP,
                diagonal,
                HAS_MASK,
                HAS_BIAS,
                BIAS_BY_ROW,
                BIAS_BY_KEY,
                part == 0,
                NEEDS_KEYS,
                NEEDS_BIAS,
                HEAD_DIM,
                BLOCK_D,
                BLOCK_M,
                BLOCK_N,
            )
        if NEEDS_BIAS:
            bias_head = head // (heads // bias_heads)
            grad_bias_ptrs = grad_bias + (batch * stride_dbb + bias_head * stride_dbh) * BIAS_STEP + keys
            tl.atomic_add(grad_bias_ptrs, tl.sum(bias_sum, axis=0), mask=keys < len_k, sem="relaxed")

    if NEEDS_KEYS:
        offsets = ((batch * len_k + positions) * heads_kv + head_kv) * HEAD_DIM + dims[None, :]
        inside = (keys < len_k)[:, None] & (dims < HEAD_DIM)[None, :]
        tl.store(grad_key + offsets, (key_sum * scale).to(grad_key.dtype.element_ty), mask=inside)
        tl.store(grad_value + offsets, value_sum.to(grad_value.dtype.element_ty), mask=inside)
