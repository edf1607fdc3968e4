"""What the kernels share: how a tile of scores is loaded and which of its scores are visible."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
WORD_KEYS = tl.constexpr(64)
"""Keys to a word of the packed mask."""


@triton.jit
def load_heads(ptrs, dims, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load a tile of query, key or value; zeros from HEAD_DIM on."""
    if HEAD_DIM == BLOCK_D:
        return tl.load(ptrs)
    else:
        return tl.load(ptrs, mask=dims < HEAD_DIM, other=0.0)


@triton.jit
def load_bias(
    bias, row_offsets, key_offsets, key_inside, BY_ROW: tl.constexpr, BY_KEY: tl.constexpr, EDGE: tl.constexpr
):
    """Load the bias of a tile, in float32, of extent 1 in the dimensions it broadcasts.

    `row_offsets` and `key_offsets` are 2-dimensional, each of extent 1 in the other's dimension, in either order.
    """
    ptrs = bias
    if BY_ROW:
        ptrs += row_offsets
    if BY_KEY:
        ptrs += key_offsets
    if not BY_ROW and not BY_KEY:
        ptrs += row_offsets * 0
    if BY_KEY and EDGE:
        tile = tl.load(ptrs, mask=key_inside, other=0.0)
    else:
        tile = tl.load(ptrs)
    return tile.to(tl.float32)


@triton.jit
def load_words(words, row_offsets, first_key, BLOCK_N: tl.constexpr):
    """Load the mask bits of the keys from `first_key` on: two words a row, the same one twice for up to 64 keys."""
    first = first_key // WORD_KEYS
    low = tl.load(words + row_offsets + first)
    if BLOCK_N > WORD_KEYS:
        return low, tl.load(words + row_offsets + first + 1)
    else:
        if BLOCK_N < WORD_KEYS:
            # A tile begins and ends within a word; the bits of its neighbours do not count.
            low = (low >> tl.cast(first_key - first * WORD_KEYS, tl.int64)) & ((1 << BLOCK_N) - 1)
        return low, low


@triton.jit
def mask_visible(low, high, columns, BLOCK_N: tl.constexpr):
    """Which scores of a tile the mask shows. `columns` count from its first key, 2-dimensional as `low` and `high`."""
    word = low
    if BLOCK_N > WORD_KEYS:
        word = tl.where(columns < WORD_KEYS, low, high)
    # Shifts of 64 bits, each by an amount of its own, would take twice the registers.
    half = word.to(tl.int32)
    if BLOCK_N > 32:
        half = tl.where(columns % WORD_KEYS < 32, half, (word >> 32).to(tl.int32))
    return ((half >> (columns % 32)) & 1) != 0
