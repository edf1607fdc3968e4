"""A dense mask as one bit a score: read once, kept for backward; and the tiles of scores in which it shows anything.

The kernels that compute attention walk a list of the tiles that are alive. A condition in their loops instead would
keep the compiler from loading the next tile while it computes this one.
"""

import triton
import triton.language as tl

from flash_dmattn.triton_kernels.tiles import WORD_KEYS

GROUP_ROWS = tl.constexpr(8)
"""Rows to a group: of GROUP_ROWS rows by WORD_KEYS keys it is noted whether any score is visible."""


@triton.jit(
    do_not_specialize=[
        "stride_b",
        "stride_h",
        "stride_m",
        "mask_heads",
        "row_count",
        "key_count",
        "word_count",
        "diagonal",
    ]
)
def pack_mask_kernel(
    mask,  # integers; floating masks come as the integers of their bits
    words,  # (batch, mask_heads, rows, word_count) of 32 keys, contiguous
    alive,  # (batch, mask_heads, groups of rows, word_count / 2), uint8, contiguous
    stride_b,
    stride_h,
    stride_m,
    stride_n,
    mask_heads,
    row_count,
    key_count,
    word_count,
    diagonal,  # row r sees keys up to r + diagonal
    STEP: tl.constexpr,  # in which strides but that of keys are counted; divides key_count
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
    last_keys = rows[:, None] + diagonal
    # What causality hides is not read: half of a square mask. Conditions change every STEP keys, for wide loads.
    inside = row_inside[:, None] & (keys < key_count // STEP * STEP)[None, :]
    inside = inside & ((keys // STEP * STEP)[None, :] <= last_keys)
    plane_offset = ((plane // mask_heads) * stride_b + (plane % mask_heads) * stride_h) * STEP
    offsets = rows.to(tl.int64)[:, None] * stride_m * STEP + keys.to(tl.int64)[None, :] * stride_n
    scores = tl.load(mask + plane_offset + offsets, mask=inside, other=0)
    if IS_FLOAT:
        # Without the sign bit, so that -0.0 hides; as integers, so that the smallest numbers are not flushed to 0.
        scores = scores << 1
    shown = (scores != 0) & (keys[None, :] <= last_keys)
    shown = tl.reshape(shown.to(tl.int32), (ROWS, WORDS, 32))
    packed = tl.sum(shown << tl.arange(0, 32)[None, None, :], axis=2)
    word_offsets = (plane * row_count + rows)[:, None] * word_count + positions[None, :]
    tl.store(words + word_offsets, packed, mask=row_inside[:, None] & (positions < word_count)[None, :])

    any_shown = tl.reshape((packed != 0).to(tl.int32), (ROWS // GROUP_ROWS, GROUP_ROWS, WORDS // 2, 2))
    any_shown = tl.max(tl.max(any_shown, axis=3), axis=1)
    groups = row_start // GROUP_ROWS + tl.arange(0, ROWS // GROUP_ROWS)
    columns = word_start // 2 + tl.arange(0, WORDS // 2)
    group_count = tl.cdiv(row_count, GROUP_ROWS)
    column_count = word_count // 2
    group_offsets = (plane * group_count + groups)[:, None] * column_count + columns[None, :]
    group_inside = (groups < group_count)[:, None] & (columns < column_count)[None, :]
    tl.store(alive + group_offsets, any_shown.to(tl.uint8), mask=group_inside)


@triton.jit(do_not_specialize=["group_count", "column_count", "len_q", "len_k", "diagonal"])
def list_tiles_kernel(
    alive,  # (planes, groups of rows, columns of WORD_KEYS keys), uint8, contiguous; one group for a mask of one row
    tiles,  # (planes, outer tiles, inner tiles), int32, contiguous
    counts,  # (planes, outer tiles, 2), int32, contiguous
    group_count,
    column_count,
    len_q,
    len_k,
    diagonal,  # row r sees keys up to r + diagonal
    BY_KEYS: tl.constexpr,  # whether an outer tile is of keys and its list of rows, or the other way round
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write the inner tiles of an outer tile that are alive, in order; how many are full; and how many they are.

    A tile is full when causality and the last key leave it whole, whatever the mask hides of it.
    """
    row_tiles = tl.cdiv(len_q, BLOCK_M)
    key_tiles = tl.cdiv(len_k, BLOCK_N)
    outer_tiles = key_tiles if BY_KEYS else row_tiles
    inner_tiles = row_tiles if BY_KEYS else key_tiles
    pid = tl.program_id(0)
    outer = pid % outer_tiles
    plane = (pid // outer_tiles).to(tl.int64)
    list_start = (plane * outer_tiles + outer) * inner_tiles

    COLUMNS: tl.constexpr = (BLOCK_N + WORD_KEYS - 1) // WORD_KEYS
    PARTS: tl.constexpr = (BLOCK_M // GROUP_ROWS) * COLUMNS
    parts = tl.arange(0, PARTS)[None, :]
    found = 0
    full_found = 0
    for start in range(0, inner_tiles, CHUNK):
        inner = start + tl.arange(0, CHUNK)
        others = tl.zeros([CHUNK], dtype=tl.int32) + outer
        row_tile = inner if BY_KEYS else others
        key_tile = others if BY_KEYS else inner
        groups = tl.minimum(row_tile[:, None] * (BLOCK_M // GROUP_ROWS) + parts // COLUMNS, group_count - 1)
        columns = (key_tile * BLOCK_N // WORD_KEYS)[:, None] + parts % COLUMNS
        ptrs = alive + (plane * group_count + groups) * column_count + columns
        shown = tl.load(ptrs, mask=(inner < inner_tiles)[:, None], other=0)

        first_row = row_tile * BLOCK_M
        last_row = tl.minimum(first_row + BLOCK_M, len_q) - 1
        first_key = key_tile * BLOCK_N
        last_key = first_key + BLOCK_N - 1
        live = (tl.max(shown.to(tl.int32), axis=1) != 0) & (first_key <= last_row + diagonal)
        full = live & (last_key < len_k) & (last_key <= first_row + diagonal)
        place = found + tl.cumsum(live.to(tl.int32), axis=0) - 1
        tl.store(tiles + list_start + place, inner, mask=live)
        found += tl.sum(live.to(tl.int32), axis=0)
        full_found += tl.sum(full.to(tl.int32), axis=0)
    tl.store(counts + (plane * outer_tiles + outer) * 2, full_found)
    tl.store(counts + (plane * outer_tiles + outer) * 2 + 1, found)
