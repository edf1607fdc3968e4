"""Memory that shows where nothing was written."""

import contextlib
from typing import Any, Iterator

import torch


@contextlib.contextmanager
def new_memory_is_nan() -> Iterator[None]:
    """Within it, what ``torch.empty`` and its like return is full of NaN, or of the largest integer.

    torch does so under ``torch.use_deterministic_algorithms``, which is also the default of `deterministic`: pass that
    to the calls within.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings: Any = torch.utils.deterministic  # a module whose settings are properties of its class
    filled = settings.fill_uninitialized_memory
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
