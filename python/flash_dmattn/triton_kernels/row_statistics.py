"""What backward knows of each row: its lse, and what its scores' gradients have in common."""

import triton
import triton.language as tl

from flash_dmattn.triton_kernels.tiles import LOG2E, RUN_TIME_NUMBERS, load_heads


@triton.jit(do_not_specialize=RUN_TIME_NUMBERS)
def row_dot_kernel(
    out,  # (B, Lq, H, D)
    grad_out,  # (B, Lq, H, D)
    lse,  # (B, H, Lq), float32, contiguous
    grad_lse,  # (B, H, Lq), float32, or None
    row_dots,  # (B, H, Lq), float32, contiguous
    stride_ob,
    stride_om,
    stride_oh,
    stride_gb,
    stride_gm,
    stride_gh,
    stride_lb,
    stride_lh,
    stride_lm,
    heads,
    len_q,
    HEADS_STEP: tl.constexpr,  # in which strides of (B, L, H, D) are counted
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Write what the gradient of each score of a row lacks to be that of its probability.

    This is out . grad_out, the sum over keys of probability times gradient of probability, less the gradient of the
    lse, whose derivative in a score is the probability.
    """
    row_blocks = tl.cdiv(len_q, BLOCK_M)
    pid = tl.program_id(0)
    plane = (pid // row_blocks).to(tl.int64)
    batch = plane // heads
    head = plane % heads
    rows = pid % row_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)[None, :]
    positions = tl.minimum(rows, len_q - 1).to(tl.int64)[:, None]
    out_ptrs = out + (batch * stride_ob + head * stride_oh + positions * stride_om) * HEADS_STEP + dims
    out_tile = load_heads(out_ptrs, dims, HEAD_DIM, BLOCK_D)
    grad_ptrs = grad_out + (batch * stride_gb + head * stride_gh + positions * stride_gm) * HEADS_STEP + dims
    grad_tile = load_heads(grad_ptrs, dims, HEAD_DIM, BLOCK_D)
    sums = tl.sum(out_tile.to(tl.float32) * grad_tile.to(tl.float32), axis=1)
    inside = rows < len_q
    if grad_lse is not None:
        lse_ptrs = grad_lse + batch * stride_lb + head * stride_lh + rows.to(tl.int64) * stride_lm
        row_lse = tl.load(lse + plane * len_q + rows, mask=inside, other=0.0)
        # The lse of a row that sees nothing is constant. Merging two calls gives it a gradient of NaN.
        sums -= tl.where(row_lse == -float("inf"), 0.0, tl.load(lse_ptrs, mask=inside, other=0.0))
    tl.store(row_dots + plane * len_q + rows, sums, mask=inside)


@triton.jit
def load_row_statistics(lse, row_dots, rows, len_q):
    """Load lse and row_dots; +inf for the lse of a row that sees nothing or does not exist: its probabilities are 0."""
    inside = rows < len_q
    row_lse = tl.load(lse + rows, mask=inside, other=-float("inf"))
    row_lse = tl.where(row_lse == -float("inf"), float("inf"), row_lse)
    return row_lse, tl.load(row_dots + rows, mask=inside, other=0.0)


@triton.jit
def probabilities_of(scores, row_lse, scale, HAS_BIAS: tl.constexpr):
    """Return the probabilities of scores, which are yet to be scaled if there is no bias."""
    if HAS_BIAS:
        # In this order, since the lse is the only number here that has been rounded; with a bias it may be large.
        return tl.exp2((scores - row_lse) * LOG2E)
    else:
        return tl.exp2(scores * (scale * LOG2E) - row_lse * LOG2E)
