"""Tile sizes: a table, not a search, so that a first call compiles one kernel and results do not vary."""

from functools import lru_cache
from typing import Dict, NamedTuple, Tuple

import torch


class Config(NamedTuple):
    """Launch parameters of a kernel."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


class Configs(NamedTuple):
    """Launch parameters of the kernels that walk tiles."""

    forward: Config
    key_gradient: Config
    query_gradient: Config


# By the width of the head dimension in a tile: without mask and bias, and with either of them, which need registers.
# 128 was measured on an H100 (`python -m benchmarks.tune_triton`), the others were chosen by what the compiler makes of
# them for sm_90: no spills in the loop, and two tiles a multiprocessor where both fit.
Table = Dict[int, Tuple[Configs, Configs]]

# Hopper and data-centre Blackwell: 227 KiB of shared memory a block.
_LARGE: Table = {
    16: (
        Configs(Config(128, 64, 4, 3), Config(64, 64, 4, 2), Config(64, 64, 4, 2)),
        Configs(Config(128, 64, 4, 2), Config(64, 64, 4, 2), Config(64, 64, 4, 2)),
    ),
    32: (
        Configs(Config(128, 64, 4, 3), Config(64, 64, 4, 2), Config(64, 64, 4, 2)),
        Configs(Config(128, 64, 4, 2), Config(64, 64, 4, 2), Config(64, 64, 4, 2)),
    ),
    64: (
        Configs(Config(128, 64, 4, 3), Config(64, 64, 4, 2), Config(128, 64, 4, 2)),
        Configs(Config(128, 64, 4, 2), Config(64, 64, 4, 2), Config(64, 64, 4, 2)),
    ),
    128: (
        Configs(Config(128, 128, 8, 3), Config(64, 64, 4, 2), Config(64, 64, 4, 2)),
        Configs(Config(64, 64, 4, 2), Config(64, 64, 4, 2), Config(64, 64, 4, 2)),
    ),
    256: (
        Configs(Config(128, 64, 8, 2), Config(32, 64, 8, 1), Config(128, 32, 8, 1)),
        Configs(Config(128, 32, 8, 2), Config(32, 64, 8, 1), Config(128, 32, 8, 1)),
    ),
}


def _same(configs: Configs) -> Tuple[Configs, Configs]:
    return configs, configs


# Others have at least 99 KiB.
_SMALL: Table = {
    16: _same(Configs(Config(64, 64, 4, 2), Config(64, 64, 4, 2), Config(64, 64, 4, 2))),
    32: _same(Configs(Config(64, 64, 4, 2), Config(64, 64, 4, 2), Config(64, 64, 4, 2))),
    64: _same(Configs(Config(64, 64, 4, 2), Config(32, 64, 4, 2), Config(64, 32, 4, 2))),
    128: _same(Configs(Config(64, 32, 4, 2), Config(32, 64, 4, 1), Config(64, 32, 4, 1))),
    256: _same(Configs(Config(32, 32, 4, 1), Config(16, 32, 4, 1), Config(32, 16, 4, 1))),
}
# Products of float32 do not run on the tensor cores: their operands live in registers.
_FLOAT32: Table = {
    16: _same(Configs(Config(64, 32, 4, 1), Config(32, 32, 4, 1), Config(32, 32, 4, 1))),
    32: _same(Configs(Config(64, 32, 4, 1), Config(32, 32, 4, 1), Config(32, 32, 4, 1))),
    64: _same(Configs(Config(32, 32, 4, 1), Config(32, 32, 8, 1), Config(32, 32, 8, 1))),
    128: _same(Configs(Config(32, 32, 8, 1), Config(32, 32, 8, 1), Config(32, 32, 8, 1))),
    256: _same(Configs(Config(16, 16, 4, 1), Config(16, 16, 8, 1), Config(16, 16, 8, 1))),
}
# The interpreter is fastest with few, large tiles.
_INTERPRETED = Configs(Config(128, 64, 4, 1), Config(128, 128, 4, 1), Config(128, 64, 4, 1))

_LARGE_CAPABILITIES = ((9, 0), (10, 0), (10, 3))


@lru_cache(maxsize=None)
def find_table(dtype: torch.dtype, device: torch.device) -> Table:
    """Return the table for a dtype and a CUDA device."""
    if dtype == torch.float32:
        return _FLOAT32
    return _LARGE if torch.cuda.get_device_capability(device) in _LARGE_CAPABILITIES else _SMALL


def find_configs(block_d: int, dtype: torch.dtype, device: torch.device, has_scores: bool) -> Configs:
    """Return the launch parameters for heads `block_d` wide; `has_scores`: the call has a mask or a bias."""
    if device.type != "cuda":
        return _INTERPRETED
    return find_table(dtype, device)[block_d][has_scores]
