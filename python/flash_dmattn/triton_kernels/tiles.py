"""What the kernels share: which tiles of scores they walk, how one is loaded and which of its scores are visible."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
WORD_KEYS = tl.constexpr(64)
"""Keys to a word of the packed mask."""
RUN_TIME_NUMBERS = [
    *(f"stride_{tensor}{dim}" for tensor in ("q", "o", "g") for dim in "bmh"),
    *(f"stride_{tensor}{dim}" for tensor in ("k", "v") for dim in "bnh"),
    *(f"stride_{tensor}{dim}" for tensor in ("w", "b", "db", "l") for dim in "bhm"),
    "stride_tb",
    "scale",
    "heads",
    "heads_kv",
    "mask_heads",
    "bias_heads",
    "len_q",
    "len_k",
    "diagonal",
]
"""Arguments for whose values nothing is compiled anew. Compile-time steps, which divide strides, tell alignment."""


@triton.jit
def load_heads(ptrs, dims, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load a tile of query, key or value; zeros from HEAD_DIM on."""
    if HEAD_DIM == BLOCK_D:
        return tl.load(ptrs)
    else:
        return tl.load(ptrs, mask=dims < HEAD_DIM, other=0.0)


@triton.jit
def load_bias(bias, row_offsets, keys, key_end, BY_ROW: tl.constexpr, BY_KEY: tl.constexpr, EDGE: tl.constexpr):
    """Load the bias of a tile, in float32, of extent 1 in the dimensions it broadcasts.

    `row_offsets` and `keys` are 2-dimensional, each of extent 1 in the other's dimension, in either order.
    """
    ptrs = bias
    if BY_ROW:
        ptrs += row_offsets
    if BY_KEY:
        ptrs += keys
    if not BY_ROW and not BY_KEY:
        ptrs += row_offsets * 0
    if BY_KEY and EDGE:
        tile = tl.load(ptrs, mask=keys < key_end, other=0.0)
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
            low = low >> tl.cast(first_key - first * WORD_KEYS, tl.int64)
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
    return (half & (1 << (columns % 32))) != 0


@triton.jit
def rows_of_program(heads, heads_kv, len_q, BLOCK_M: tl.constexpr):
    """Return what a program of BLOCK_M rows works on: its tile, plane, batch, head and kv head, and its rows.

    Last rows first: under causality they take longest.
    """
    row_tiles = tl.cdiv(len_q, BLOCK_M)
    pid = tl.program_id(0)
    row_tile = row_tiles - 1 - pid % row_tiles
    plane = (pid // row_tiles).to(tl.int64)
    head = plane % heads
    return (
        row_tile,
        plane,
        plane // heads,
        head,
        head // (heads // heads_kv),
        row_tile * BLOCK_M + tl.arange(0, BLOCK_M),
    )


@triton.jit
def mask_of_head(
    words,
    tiles,
    tile_counts,
    batch,
    mask_head,
    outer_tile,
    outer_tiles,
    inner_tiles,
    stride_wb,
    stride_wh,
    stride_tb,
):
    """Return the words of a head of the mask, and the list of tiles of one outer tile, with its counts."""
    tile_list = batch * stride_tb + mask_head * outer_tiles + outer_tile
    words += batch * stride_wb + mask_head * stride_wh
    return words, tiles + tile_list * inner_tiles, tile_counts + tile_list * 2


@triton.jit
def find_tile(tiles, index, HAS_TILES: tl.constexpr):
    """Return the tile at a position of a list of those that are alive; without a list all are."""
    if HAS_TILES:
        return tl.load(tiles + index)
    else:
        return index


@triton.jit
def key_tiles_of_rows(counts, first_row, len_k, diagonal, HAS_TILES: tl.constexpr, BLOCK_M, BLOCK_N: tl.constexpr):
    """Return the number of full tiles, which come first, and the number of all tiles that BLOCK_M rows walk."""
    if HAS_TILES:
        return tl.load(counts), tl.load(counts + 1)
    else:
        full = tl.minimum(len_k, tl.maximum(first_row + 1 + diagonal, 0)) // BLOCK_N
        return full, tl.cdiv(tl.minimum(len_k, tl.maximum(first_row + BLOCK_M + diagonal, 0)), BLOCK_N)


@triton.jit
def row_tiles_of_keys(
    counts, first_key, len_q, len_k, diagonal, HAS_TILES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N
):
    """Return the first tile that BLOCK_N keys walk, the first of the full ones, which come last, and the end."""
    if HAS_TILES:
        end = tl.load(counts + 1)
        return 0, end - tl.load(counts), end
    else:
        end = tl.cdiv(len_q, BLOCK_M)
        last_key = first_key + BLOCK_N - 1
        first = tl.minimum(tl.maximum(first_key - diagonal, 0) // BLOCK_M, end)
        full = tl.minimum(tl.cdiv(tl.maximum(last_key - diagonal, 0), BLOCK_M), end)
        return first, (full if last_key < len_k else end), end
