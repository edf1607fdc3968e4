"""Backward pass: the scores are computed again, once by tiles of keys and once by tiles of query rows.

One kernel sums over rows (the gradients of key and value, and of a bias that is the same for all rows), the other over
keys (the gradients of query and of any other bias), so only a bias gradient that is summed over the batch or over heads
needs atomic additions.
"""

import triton
import triton.language as tl

from flash_dmattn.triton_kernels.tiles import LOG2E, load_bias, load_heads, load_words, mask_visible


@triton.jit(do_not_specialize=["heads", "len_q"])
def row_dot_kernel(
    out,  # (B, Lq, H, D)
    grad_out,  # (B, Lq, H, D)
    row_dots,  # (B, H, Lq), float32, contiguous
    stride_ob,
    stride_om,
    stride_oh,
    stride_gb,
    stride_gm,
    stride_gh,
    heads,
    len_q,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Write out . grad_out of each row: the sum over keys of probability times gradient of probability."""
    row_blocks = tl.cdiv(len_q, BLOCK_M)
    pid = tl.program_id(0)
    plane = (pid // row_blocks).to(tl.int64)
    batch = plane // heads
    head = plane % heads
    rows = pid % row_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)[None, :]
    positions = tl.minimum(rows, len_q - 1).to(tl.int64)[:, None]
    out_tile = load_heads(
        out + batch * stride_ob + head * stride_oh + positions * stride_om + dims, dims, HEAD_DIM, BLOCK_D
    )
    grad_ptrs = grad_out + batch * stride_gb + head * stride_gh + positions * stride_gm + dims
    grad_tile = load_heads(grad_ptrs, dims, HEAD_DIM, BLOCK_D)
    sums = tl.sum(out_tile.to(tl.float32) * grad_tile.to(tl.float32), axis=1)
    tl.store(row_dots + plane * len_q + rows, sums, mask=rows < len_q)


@triton.jit
def _load_row_statistics(lse, row_dots, rows, len_q):
    """Load lse and row_dots; +inf for the lse of a row that sees nothing or does not exist: its probabilities are 0."""
    inside = rows < len_q
    row_lse = tl.load(lse + rows, mask=inside, other=-float("inf"))
    row_lse = tl.where(row_lse == -float("inf"), float("inf"), row_lse)
    return row_lse, tl.load(row_dots + rows, mask=inside, other=0.0)


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
    words,
    bias,
    keys,
    first_key,
    first_row,
    end_row,
    stride_qm,
    stride_gm,
    stride_wm,
    stride_bm,
    scale,
    len_q,
    len_k,
    causal_offset,
    HAS_MASK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BIAS_BY_ROW: tl.constexpr,
    BIAS_BY_KEY: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    NEEDS_KEY: tl.constexpr,
    NEEDS_VALUE: tl.constexpr,
    NEEDS_BIAS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add what the rows [first_row, end_row) contribute. Tiles of scores are (keys, rows)."""
    dims = tl.arange(0, BLOCK_D)
    for start in range(first_row, end_row, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        positions = tl.minimum(rows, len_q - 1).to(tl.int64)
        low = 0
        high = 0
        alive = True
        if HAS_MASK:
            low, high = load_words(words, positions * stride_wm, first_key, BLOCK_N)
            alive = tl.max(((low | high) != 0).to(tl.int32), axis=0) != 0
        if alive:
            query_ptrs = query_base + (positions[:, None] * stride_qm + dims[None, :])
            query = load_heads(query_ptrs, dims[None, :], HEAD_DIM, BLOCK_D)
            scores = tl.dot(key, tl.trans(query), input_precision="ieee") * scale
            inside = keys[:, None] < len_k
            if HAS_BIAS:
                scores += load_bias(
                    bias, (positions * stride_bm)[None, :], keys[:, None], inside, BIAS_BY_ROW, BIAS_BY_KEY, True
                )
            if HAS_MASK:
                inside = inside & mask_visible(low[None, :], high[None, :], tl.arange(0, BLOCK_N)[:, None], BLOCK_N)
            if IS_CAUSAL:
                inside = inside & (keys[:, None] <= rows[None, :] + causal_offset)
            row_lse, row_dot = _load_row_statistics(lse, row_dots, rows, len_q)
            probabilities = tl.where(inside, tl.exp2((scores - row_lse[None, :]) * LOG2E), 0.0)
            grad_out_ptrs = grad_out_base + (positions[:, None] * stride_gm + dims[None, :])
            grad_out = load_heads(grad_out_ptrs, dims[None, :], HEAD_DIM, BLOCK_D)
            if NEEDS_VALUE:
                grad_value = tl.dot(probabilities.to(grad_out.dtype), grad_out, grad_value, input_precision="ieee")
            if NEEDS_KEY or NEEDS_BIAS:
                grad_probabilities = tl.dot(value, tl.trans(grad_out), input_precision="ieee")
                grad_scores = probabilities * (grad_probabilities - row_dot[None, :])
                if NEEDS_KEY:
                    grad_key = tl.dot(grad_scores.to(query.dtype), query, grad_key, input_precision="ieee")
                if NEEDS_BIAS:
                    grad_bias += tl.sum(grad_scores, axis=1)
    return grad_key, grad_value, grad_bias


@triton.jit(do_not_specialize=["scale", "heads", "heads_kv", "mask_heads", "bias_heads", "len_q", "len_k"])
def key_gradient_kernel(
    query,  # (B, Lq, H, D)
    key,  # (B, Lk, H_kv, D)
    value,  # (B, Lk, H_kv, D)
    words,  # ({B|1}, {H|H_kv|1}, {Lq|1}, words), int64, or None
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
    HAS_MASK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BIAS_BY_ROW: tl.constexpr,
    BIAS_BY_KEY: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    NEEDS_KEY: tl.constexpr,
    NEEDS_VALUE: tl.constexpr,
    NEEDS_BIAS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write the gradients of BLOCK_N keys of one kv head, over all heads that read it."""
    key_blocks = tl.cdiv(len_k, BLOCK_N)
    pid = tl.program_id(0)
    # First keys first: under causality they take longest.
    first_key = pid % key_blocks * BLOCK_N
    plane = (pid // key_blocks).to(tl.int64)
    batch = plane // heads_kv
    head_kv = plane % heads_kv
    group = heads // heads_kv

    keys = first_key + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    positions = tl.minimum(keys, len_k - 1).to(tl.int64)[:, None]
    key_ptrs = key + batch * stride_kb + head_kv * stride_kh + positions * stride_kn + dims[None, :]
    key_tile = load_heads(key_ptrs, dims[None, :], HEAD_DIM, BLOCK_D)
    value_ptrs = value + batch * stride_vb + head_kv * stride_vh + positions * stride_vn + dims[None, :]
    value_tile = load_heads(value_ptrs, dims[None, :], HEAD_DIM, BLOCK_D)

    causal_offset = len_k - len_q
    first_row = 0
    if IS_CAUSAL:
        first_row = tl.maximum(first_key - causal_offset, 0) // BLOCK_M * BLOCK_M

    key_sum = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    value_sum = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    for head in range(head_kv * group, head_kv * group + group):
        head_words = words
        head_bias = bias
        if HAS_MASK:
            head_words = words + batch * stride_wb + head // (heads // mask_heads) * stride_wh
        if HAS_BIAS:
            head_bias = bias + batch * stride_bb + head // (heads // bias_heads) * stride_bh
        statistics = (batch * heads + head) * len_q
        key_sum, value_sum, bias_sum = _key_gradient_steps(
            key_sum,
            value_sum,
            tl.zeros([BLOCK_N], dtype=tl.float32),
            key_tile,
            value_tile,
            query + batch * stride_qb + head * stride_qh,
            grad_out + batch * stride_gb + head * stride_gh,
            lse + statistics,
            row_dots + statistics,
            head_words,
            head_bias,
            keys,
            first_key,
            first_row,
            len_q,
            stride_qm,
            stride_gm,
            stride_wm,
            stride_bm,
            scale,
            len_q,
            len_k,
            causal_offset,
            HAS_MASK,
            HAS_BIAS,
            BIAS_BY_ROW,
            BIAS_BY_KEY,
            IS_CAUSAL,
            NEEDS_KEY,
            NEEDS_VALUE,
            NEEDS_BIAS,
            HEAD_DIM,
            BLOCK_D,
            BLOCK_M,
            BLOCK_N,
        )
        if NEEDS_BIAS:
            bias_head = head // (heads // bias_heads)
            grad_bias_ptrs = grad_bias + batch * stride_dbb + bias_head * stride_dbh + keys
            tl.atomic_add(grad_bias_ptrs, bias_sum, mask=keys < len_k, sem="relaxed")

    offsets = ((batch * len_k + positions) * heads_kv + head_kv) * HEAD_DIM + dims[None, :]
    inside = (keys < len_k)[:, None] & (dims < HEAD_DIM)[None, :]
    if NEEDS_KEY:
        tl.store(grad_key + offsets, (key_sum * scale).to(grad_key.dtype.element_ty), mask=inside)
    if NEEDS_VALUE:
        tl.store(grad_value + offsets, value_sum.to(grad_value.dtype.element_ty), mask=inside)


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
    words,
    bias,
    grad_bias,
    word_rows,
    bias_rows,
    grad_bias_rows,
    rows,
    first_key,
    end_key,
    stride_kn,
    stride_vn,
    scale,
    len_q,
    len_k,
    causal_offset,
    HAS_MASK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BIAS_BY_ROW: tl.constexpr,
    BIAS_BY_KEY: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    EDGE: tl.constexpr,  # whether keys of these tiles may be past len_k or hidden by causality
    NEEDS_QUERY: tl.constexpr,
    NEEDS_BIAS: tl.constexpr,
    BIAS_IS_FULL: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add what the keys [first_key, end_key) contribute; tiles of the gradient of a bias by row and key are written."""
    dims = tl.arange(0, BLOCK_D)
    for start in range(first_key, end_key, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        low = 0
        high = 0
        alive = True
        if HAS_MASK:
            low, high = load_words(words, word_rows, start, BLOCK_N)
            alive = tl.max(((low | high) != 0).to(tl.int32), axis=0) != 0
        if alive:
            positions = (tl.minimum(keys, len_k - 1) if EDGE else keys).to(tl.int64)
            key_ptrs = key_base + (positions[:, None] * stride_kn + dims[None, :])
            key = load_heads(key_ptrs, dims[None, :], HEAD_DIM, BLOCK_D)
            scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
            if HAS_BIAS:
                inside = keys[None, :] < len_k
                scores += load_bias(bias, bias_rows[:, None], keys[None, :], inside, BIAS_BY_ROW, BIAS_BY_KEY, EDGE)
            probabilities = tl.exp2((scores - row_lse[:, None]) * LOG2E)
            if HAS_MASK:
                visible = mask_visible(low[:, None], high[:, None], tl.arange(0, BLOCK_N)[None, :], BLOCK_N)
                probabilities = tl.where(visible, probabilities, 0.0)
            if EDGE:
                inside = keys[None, :] < len_k
                if IS_CAUSAL:
                    inside = inside & (keys[None, :] <= rows[:, None] + causal_offset)
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
                    inside = (rows < len_q)[:, None] & (keys < len_k)[None, :]
                    if BIAS_IS_FULL:
                        tl.store(grad_ptrs, grad_scores.to(grad_bias.dtype.element_ty), mask=inside)
                    else:
                        tl.atomic_add(grad_ptrs, grad_scores, mask=inside, sem="relaxed")
                else:
                    grad_bias_sum += tl.sum(grad_scores, axis=1)
    return grad_query, grad_bias_sum


@triton.jit(do_not_specialize=["scale", "heads", "heads_kv", "mask_heads", "bias_heads", "len_q", "len_k"])
def query_gradient_kernel(
    query,  # (B, Lq, H, D)
    key,  # (B, Lk, H_kv, D)
    value,  # (B, Lk, H_kv, D)
    words,  # ({B|1}, {H|H_kv|1}, {Lq|1}, words), int64, or None
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
    HAS_MASK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BIAS_BY_ROW: tl.constexpr,
    BIAS_BY_KEY: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    NEEDS_QUERY: tl.constexpr,
    NEEDS_BIAS: tl.constexpr,
    BIAS_IS_FULL: tl.constexpr,  # each element of the bias belongs to one score
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write the gradients of BLOCK_M rows of one head."""
    row_blocks = tl.cdiv(len_q, BLOCK_M)
    pid = tl.program_id(0)
    # Last rows first: under causality they take longest.
    row_start = (row_blocks - 1 - pid % row_blocks) * BLOCK_M
    plane = (pid // row_blocks).to(tl.int64)
    batch = plane // heads
    head = plane % heads
    head_kv = head // (heads // heads_kv)

    rows = row_start + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    positions = tl.minimum(rows, len_q - 1).to(tl.int64)
    query_ptrs = query + batch * stride_qb + head * stride_qh + positions[:, None] * stride_qm + dims[None, :]
    query_tile = load_heads(query_ptrs, dims[None, :], HEAD_DIM, BLOCK_D)
    grad_out_ptrs = grad_out + batch * stride_gb + head * stride_gh + positions[:, None] * stride_gm + dims[None, :]
    grad_out_tile = load_heads(grad_out_ptrs, dims[None, :], HEAD_DIM, BLOCK_D)
    row_lse, row_dot = _load_row_statistics(lse + plane * len_q, row_dots + plane * len_q, rows, len_q)
    key_base = key + batch * stride_kb + head_kv * stride_kh
    value_base = value + batch * stride_vb + head_kv * stride_vh
    word_rows = positions
    bias_rows = positions
    if HAS_MASK:
        words += batch * stride_wb + head // (heads // mask_heads) * stride_wh
        word_rows = positions * stride_wm
    if HAS_BIAS:
        bias += batch * stride_bb + head // (heads // bias_heads) * stride_bh
        bias_rows = positions * stride_bm
    if NEEDS_BIAS:
        grad_bias += batch * stride_dbb + head // (heads // bias_heads) * stride_dbh

    causal_offset = len_k - len_q
    full_end = len_k
    end = len_k
    if IS_CAUSAL:
        full_end = tl.minimum(full_end, tl.maximum(row_start + 1 + causal_offset, 0))
        end = tl.minimum(end, tl.maximum(row_start + BLOCK_M + causal_offset, 0))
    full_end = full_end // BLOCK_N * BLOCK_N

    query_sum = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    bias_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
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
            words,
            bias,
            grad_bias,
            word_rows,
            bias_rows,
            positions * stride_dbm,
            rows,
            0 if part == 0 else full_end,
            full_end if part == 0 else end,
            stride_kn,
            stride_vn,
            scale,
            len_q,
            len_k,
            causal_offset,
            HAS_MASK,
            HAS_BIAS,
            BIAS_BY_ROW,
            BIAS_BY_KEY,
            IS_CAUSAL,
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
            tl.atomic_add(grad_bias + positions * stride_dbm, bias_sum, mask=inside, sem="relaxed")
        else:
            tl.atomic_add(grad_bias, tl.sum(bias_sum, axis=0), sem="relaxed")
