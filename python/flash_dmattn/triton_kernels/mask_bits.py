"""A dense mask as one bit a score: read once, kept for backward, and cheap to find the tiles in that nothing shows."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["mask_heads", "row_count", "key_count", "word_count", "causal_offset"])
def pack_mask_kernel(
    mask,  # integers; floating masks come as the integers of their bits
    words,  # (batch, mask_heads, rows, word_count) of 32 keys, contiguous
    stride_b,
    stride_h,
    stride_m,
    stride_n,
    mask_heads,
    row_count,
    key_count,
    word_count,
    causal_offset,
    IS_CAUSAL: tl.constexpr,
    IS_FLOAT: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Pack ROWS rows by WORDS words."""
    word_blocks = tl.cdiv(word_count, WORDS)
    row_blocks = tl.cdiv(row_count, ROWS)
    pid = tl.program_id(0)
    word_start = (pid % word_blocks) * WORDS
    row_start = (pid // word_blocks) % row_blocks * ROWS
    plane = (pid // word_blocks // row_blocks).to(tl.int64)

    rows = row_start + tl.arange(0, ROWS)
    keys = word_start * 32 + tl.arange(0, WORDS * 32)
    positions = word_start + tl.arange(0, WORDS)
    row_inside = rows < row_count
    inside = row_inside[:, None] & (keys < key_count)[None, :]
    if IS_CAUSAL:
        # What causality hides is not read: half of a square mask.
        inside = inside & (keys[None, :] <= rows[:, None] + causal_offset)
    plane_offset = (plane // mask_heads) * stride_b + (plane % mask_heads) * stride_h
    offsets = rows.to(tl.int64)[:, None] * stride_m + keys.to(tl.int64)[None, :] * stride_n
    scores = tl.load(mask + plane_offset + offsets, mask=inside, other=0)
    if IS_FLOAT:
        # Without the sign bit, so that -0.0 hides; as integers, so that the smallest numbers are not flushed to 0.
        scores = scores << 1
    shown = tl.reshape((scores != 0).to(tl.int32), (ROWS, WORDS, 32))
    packed = tl.sum(shown << tl.arange(0, 32)[None, None, :], axis=2)
    word_offsets = (plane * row_count + rows)[:, None] * word_count + positions[None, :]
    tl.store(words + word_offsets, packed, mask=row_inside[:, None] & (positions < word_count)[None, :])
