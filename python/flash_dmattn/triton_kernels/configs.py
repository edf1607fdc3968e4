"""Tile sizes: a table, not a search, so that a first call compiles one kernel and results do not vary."""

from functools import lru_cache
from typing import NamedTuple

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


# By the width of the head dimension in a tile. Hopper and data-centre Blackwell have 227 KiB of shared memory a block.
_LARGE = {
    16: Configs(Config(128, 64, 4, 3), Config(64, 64, 4, 2), Config(64, 64, 4, 2)),
    32: Configs(Config(128, 64, 4, 3), Config(64, 64, 4, 2), Config(64, 64, 4, 2)),
    64: Configs(Config(128, 64, 4, 3), Config(64, 128, 8, 2), Config(128, 64, 8, 2)),
    128: Configs(Config(128, 64, 8, 2), Config(64, 128, 8, 2), Config(128, 64, 8, 2)),
    256: Configs(Config(128, 32, 8, 2), Config(32, 64, 8, 1), Config(64, 32, 8, 1)),
}
# Others have at least 99 KiB.
_SMALL = {
    16: Configs(Config(64, 64, 4, 2), Config(64, 64, 4, 2), Config(64, 64, 4, 2)),
    32: Configs(Config(64, 64, 4, 2), Config(64, 64, 4, 2), Config(64, 64, 4, 2)),
    64: Configs(Config(64, 64, 4, 2), Config(32, 64, 4, 2), Config(64, 32, 4, 2)),
    128: Configs(Config(64, 32, 4, 2), Config(32, 64, 4, 1), Config(64, 32, 4, 1)),
    256: Configs(Config(32, 32, 4, 1), Config(16, 32, 4, 1), Config(32, 16, 4, 1)),
}
# Products of float32 do not run on the tensor cores: their operands live in registers.
_FLOAT32 = {
    16: Configs(Config(64, 32, 4, 1), Config(32, 32, 4, 1), Config(32, 32, 4, 1)),
    32: Configs(Config(64, 32, 4, 1), Config(32, 32, 4, 1), Config(32, 32, 4, 1)),
    64: Configs(Config(32, 32, 4, 1), Config(32, 32, 4, 1), Config(32, 32, 4, 1)),
    128: Configs(Config(32, 32, 4, 1), Config(32, 32, 8, 1), Config(32, 32, 8, 1)),
    256: Configs(Config(16, 16, 4, 1), Config(16, 16, 8, 1), Config(16, 16, 8, 1)),
}
# The interpreter is fastest with few, large tiles.
_INTERPRETED = Configs(Config(128, 64, 4, 1), Config(128, 128, 4, 1), Config(128, 64, 4, 1))

_LARGE_CAPABILITIES = ((9, 0), (10, 0), (10, 3))


@lru_cache(maxsize=None)
def find_configs(block_d: int, dtype: torch.dtype, device: torch.device) -> Configs:
    """Return the launch parameters for tiles of `block_d` elements of `dtype` on `device`."""
    if device.type != "cuda":
        return _INTERPRETED
    if dtype == torch.float32:
        return _FLOAT32[block_d]
    capability = torch.cuda.get_device_capability(device)
    return (_LARGE if capability in _LARGE_CAPABILITIES else _SMALL)[block_d]
