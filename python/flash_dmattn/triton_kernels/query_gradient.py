"""Backward pass by tiles of query rows, which sums over keys: gradients of query and of a bias that differs by row."""

import triton
import triton.language as tl

from flash_dmattn.triton_kernels.row_statistics import load_row_statistics, probabilities_of
from flash_dmattn.triton_kernels.tiles import (
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


@triton.jit
def _query_gradient_steps(
    grad_query,
    grad_bias_sum,
    query,
    grad_out,
    row_lse,
    row_dot,
    key_base,
    value_base,
    tiles,
    words,
    bias,
    grad_bias,
    word_rows,
    bias_rows,
    grad_bias_rows,
    rows,
    first_index,
    end_index,
    stride_kn,
    stride_vn,
    scale,
    len_q,
    len_k,
    bias_end,
    diagonal,
    HAS_MASK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BIAS_BY_ROW: tl.constexpr,
    BIAS_BY_KEY: tl.constexpr,
    EDGE: tl.constexpr,  # whether keys of these tiles may be past len_k or hidden by causality
    NEEDS_QUERY: tl.constexpr,
    NEEDS_BIAS: tl.constexpr,
    BIAS_IS_FULL: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add what the tiles of keys [first_index, end_index) contribute.

    Tiles of the gradient of a bias by row and key are written at once.
    """
    dims = tl.arange(0, BLOCK_D)
    for index in range(first_index, end_index):
        start = find_tile(tiles, index, HAS_MASK) * BLOCK_N
        keys = start + tl.arange(0, BLOCK_N)
        positions = (tl.minimum(keys, len_k - 1) if EDGE else keys).to(tl.int64)
        key_ptrs = key_base + (positions[:, None] * stride_kn + dims[None, :])
        key = load_heads(key_ptrs, dims[None, :], HEAD_DIM, BLOCK_D)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")
        if HAS_BIAS:
            tile = load_bias(bias, bias_rows[:, None], keys[None, :], bias_end, BIAS_BY_ROW, BIAS_BY_KEY, EDGE)
            scores = scores * scale + tile
        probabilities = probabilities_of(scores, row_lse[:, None], scale, HAS_BIAS)
        if HAS_MASK:
            low, high = load_words(words, word_rows, start, BLOCK_N)
            visible = mask_visible(low[:, None], high[:, None], tl.arange(0, BLOCK_N)[None, :], BLOCK_N)
            probabilities = tl.where(visible, probabilities, 0.0)
        if EDGE:
            inside = (keys[None, :] < len_k) & (keys[None, :] <= rows[:, None] + diagonal)
            probabilities = tl.where(inside, probabilities, 0.0)
        value_ptrs = value_base + (positions[:, None] * stride_vn + dims[None, :])
        value = load_heads(value_ptrs, dims[None, :], HEAD_DIM, BLOCK_D)
        grad_probabilities = tl.dot(grad_out, tl.trans(value), input_precision="ieee")
        grad_scores = probabilities * (grad_probabilities - row_dot[:, None])
        if NEEDS_QUERY:
            grad_query = tl.dot(grad_scores.to(key.dtype), key, grad_query, input_precision="ieee")
        if NEEDS_BIAS:
            if BIAS_BY_KEY:
                grad_ptrs = grad_bias + (grad_bias_rows[:, None] + keys[None, :])
                stored = (rows < len_q)[:, None]
                if EDGE:
                    stored = stored & (keys < bias_end)[None, :]
                if BIAS_IS_FULL:
                    tl.store(grad_ptrs, grad_scores.to(grad_bias.dtype.element_ty), mask=stored)
                else:
                    tl.atomic_add(grad_ptrs, grad_scores, mask=stored, sem="relaxed")
            else:
                grad_bias_sum += tl.sum(grad_scores, axis=1)
    return grad_query, grad_bias_sum


@triton.jit(do_not_specialize=RUN_TIME_NUMBERS)
def query_gradient_kernel(
    query,  # (B, Lq, H, D)
    key,  # (B, Lk, H_kv, D)
    value,  # (B, Lk, H_kv, D)
    words,  # ({B|1}, {H|H_kv|1}, {Lq|1}, words), int64, or None
    tiles,  # ({B|1}, {H|H_kv|1}, tiles of rows, tiles of keys), int32: those that are alive, or None
    tile_counts,  # ({B|1}, {H|H_kv|1}, tiles of rows, 2), int32, or None
    bias,  # ({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1}), or None
    grad_out,  # (B, Lq, H, D)
    lse,  # (B, H, Lq), float32, contiguous
    row_dots,  # (B, H, Lq), float32, contiguous
    grad_query,  # (B, Lq, H, D), contiguous, or None
    grad_bias,  # the shape of bias, zeros; float32 unless BIAS_IS_FULL; or None
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
    stride_dbm,
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
    NEEDS_QUERY: tl.constexpr,
    NEEDS_BIAS: tl.constexpr,
    BIAS_IS_FULL: tl.constexpr,  # each element of the bias belongs to one score
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write the gradients of BLOCK_M rows of one head."""
    row_tile, plane, batch, head, head_kv, rows = rows_of_program(heads, heads_kv, len_q, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    positions = tl.minimum(rows, len_q - 1).to(tl.int64)
    query_ptrs = (
        query + (batch * stride_qb + head * stride_qh + positions[:, None] * stride_qm) * HEADS_STEP + dims[None, :]
    )
    query_tile = load_heads(query_ptrs, dims[None, :], HEAD_DIM, BLOCK_D)
    grad_out_ptrs = (
        grad_out + (batch * stride_gb + head * stride_gh + positions[:, None] * stride_gm) * HEADS_STEP + dims[None, :]
    )
    grad_out_tile = load_heads(grad_out_ptrs, dims[None, :], HEAD_DIM, BLOCK_D)
    row_lse, row_dot = load_row_statistics(lse + plane * len_q, row_dots + plane * len_q, rows, len_q)
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
    if NEEDS_BIAS:
        grad_bias += (batch * stride_dbb + head // (heads // bias_heads) * stride_dbh) * BIAS_STEP

    query_sum = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    bias_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    full_end, end = key_tiles_of_rows(tile_counts, row_tile * BLOCK_M, len_k, diagonal, HAS_MASK, BLOCK_M, BLOCK_N)
    for part in tl.static_range(2):
        query_sum, bias_sum = _query_gradient_steps(
            query_sum,
            bias_sum,
            query_tile,
            grad_out_tile,
            row_lse,
            row_dot,
            key_base,
            value_base,
            tiles,
            words,
            bias,
            grad_bias,
            word_rows,
            bias_rows,
            positions * stride_dbm * BIAS_STEP,
            rows,
            0 if part == 0 else full_end,
            full_end if part == 0 else end,
            stride_kn.to(tl.int64) * HEADS_STEP,
            stride_vn.to(tl.int64) * HEADS_STEP,
            scale,
            len_q,
            len_k,
            len_k // BIAS_STEP * BIAS_STEP,
            diagonal,
            HAS_MASK,
            HAS_BIAS,
            BIAS_BY_ROW,
            BIAS_BY_KEY,
            part == 1,
            NEEDS_QUERY,
            NEEDS_BIAS,
            BIAS_IS_FULL,
            HEAD_DIM,
            BLOCK_D,
            BLOCK_N,
        )

    inside = rows < len_q
    if NEEDS_QUERY:
        offsets = ((batch * len_q + positions[:, None]) * heads + head) * HEAD_DIM + dims[None, :]
        store_mask = inside[:, None] & (dims < HEAD_DIM)[None, :]
        tl.store(grad_query + offsets, (query_sum * scale).to(grad_query.dtype.element_ty), mask=store_mask)
    if NEEDS_BIAS and not BIAS_BY_KEY:
        if BIAS_BY_ROW:
            tl.atomic_add(grad_bias + positions * stride_dbm * BIAS_STEP, bias_sum, mask=inside, sem="relaxed")
        else:
            tl.atomic_add(grad_bias, tl.sum(bias_sum, axis=0), sem="relaxed")
