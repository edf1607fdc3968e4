"""Forward pass: one program for each tile of query rows of a head, over the keys that its rows may see."""

import triton
import triton.language as tl

from flash_dmattn.triton_kernels.tiles import LN2, LOG2E, load_bias, load_heads, load_words, mask_visible


@triton.jit
def _forward_steps(
    acc,
    row_sum,
    row_max,
    query,
    key_base,
    value_base,
    words,
    bias,
    word_rows,
    bias_rows,
    rows,
    first_key,
    end_key,
    stride_kn,
    stride_vn,
    scale,
    len_k,
    causal_offset,
    HAS_MASK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BIAS_BY_ROW: tl.constexpr,
    BIAS_BY_KEY: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    EDGE: tl.constexpr,  # whether keys of these tiles may be past len_k or hidden by causality
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Online softmax over the keys [first_key, end_key)."""
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
            # Rows past the end repeat the last one: their scores are hidden, and no load needs a condition.
            positions = (tl.minimum(keys, len_k - 1) if EDGE else keys).to(tl.int64)
            key_ptrs = key_base + (dims[:, None] + positions[None, :] * stride_kn)
            key = load_heads(key_ptrs, dims[:, None], HEAD_DIM, BLOCK_D)
            scores = tl.dot(query, key, input_precision="ieee") * scale
            if HAS_BIAS:
                inside = keys[None, :] < len_k
                scores += load_bias(bias, bias_rows[:, None], keys[None, :], inside, BIAS_BY_ROW, BIAS_BY_KEY, EDGE)
            if HAS_MASK:
                visible = mask_visible(low[:, None], high[:, None], tl.arange(0, BLOCK_N)[None, :], BLOCK_N)
                scores = tl.where(visible, scores, -float("inf"))
            if EDGE:
                inside = keys[None, :] < len_k
                if IS_CAUSAL:
                    inside = inside & (keys[None, :] <= rows[:, None] + causal_offset)
                scores = tl.where(inside, scores, -float("inf"))

            new_max = tl.maximum(row_max, tl.max(scores, axis=1))
            # A row that has seen nothing yet has the maximum -inf; shifted by 0 its exponentials are 0, not NaN.
            shift = tl.where(new_max == -float("inf"), 0.0, new_max) * LOG2E
            probabilities = tl.exp2(scores * LOG2E - shift[:, None])
            rescale = tl.exp2(row_max * LOG2E - shift)
            row_sum = row_sum * rescale + tl.sum(probabilities, axis=1)
            value_ptrs = value_base + (positions[:, None] * stride_vn + dims[None, :])
            value = load_heads(value_ptrs, dims[None, :], HEAD_DIM, BLOCK_D)
            acc = tl.dot(probabilities.to(value.dtype), value, acc * rescale[:, None], input_precision="ieee")
            row_max = new_max
    return acc, row_sum, row_max


@triton.jit(do_not_specialize=["scale", "heads", "heads_kv", "mask_heads", "bias_heads", "len_q", "len_k"])
def attention_forward_kernel(
    query,  # (B, Lq, H, D)
    key,  # (B, Lk, H_kv, D)
    value,  # (B, Lk, H_kv, D)
    words,  # ({B|1}, {H|H_kv|1}, {Lq|1}, words), int64, or None
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
    stride_bb,
    stride_bh,
    stride_bm,
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
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write `out` and `lse` of BLOCK_M rows of one head."""
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
    # Rows past the end repeat the last one and are not stored.
    positions = tl.minimum(rows, len_q - 1).to(tl.int64)
    query_ptrs = query + batch * stride_qb + head * stride_qh + positions[:, None] * stride_qm + dims[None, :]
    query_tile = load_heads(query_ptrs, dims[None, :], HEAD_DIM, BLOCK_D)
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

    causal_offset = len_k - len_q
    full_end = len_k
    end = len_k
    if IS_CAUSAL:
        full_end = tl.minimum(full_end, tl.maximum(row_start + 1 + causal_offset, 0))
        end = tl.minimum(end, tl.maximum(row_start + BLOCK_M + causal_offset, 0))
    full_end = full_end // BLOCK_N * BLOCK_N

    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    row_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    row_max = tl.full([BLOCK_M], -float("inf"), dtype=tl.float32)
    for part in tl.static_range(2):
        acc, row_sum, row_max = _forward_steps(
            acc,
            row_sum,
            row_max,
            query_tile,
            key_base,
            value_base,
            words,
            bias,
            word_rows,
            bias_rows,
            rows,
            0 if part == 0 else full_end,
            full_end if part == 0 else end,
            stride_kn,
            stride_vn,
            scale,
            len_k,
            causal_offset,
            HAS_MASK,
            HAS_BIAS,
            BIAS_BY_ROW,
            BIAS_BY_KEY,
            IS_CAUSAL,
            part == 1,
            HEAD_DIM,
            BLOCK_D,
            BLOCK_N,
        )

    dead = row_sum == 0.0
    row_sum = tl.where(dead, 1.0, row_sum)
    acc = acc / row_sum[:, None]
    inside = rows < len_q
    out_ptrs = out + batch * stride_ob + head * stride_oh + positions[:, None] * stride_om + dims[None, :]
    tl.store(out_ptrs, acc.to(out.dtype.element_ty), mask=inside[:, None] & (dims < HEAD_DIM)[None, :])
    row_lse = tl.where(dead, -float("inf"), row_max + tl.log2(row_sum) * LN2)
    tl.store(lse + plane * len_q + rows, row_lse, mask=inside)
