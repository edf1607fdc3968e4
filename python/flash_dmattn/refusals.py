"""Checks of single arguments, in the same words wherever an argument of the kind is taken."""

from typing import Any

import torch

_INT_LIMIT = 1 << 63


def not_a_tensor(name: str, given: Any, otherwise: str = "") -> str:
    """Message of a refusal."""
    return f"{name} must be a torch.Tensor{otherwise}, got {type(given).__name__}"


def checked_int(name: str, given: Any) -> int:
    """`given` as an int that libfdma can hold.

    Raises
    ------
    TypeError
        No integer; a bool and a tensor are none.
    ValueError
        2^63 or more.
    """
    if type(given) is not int:
        if isinstance(given, (bool, torch.Tensor)) or not hasattr(given, "__index__"):
            raise TypeError(f"{name} must be an int, got {given!r}")
        if not isinstance(given, torch.SymInt):
            given = given.__index__()
    number: int = given
    if number >= _INT_LIMIT:
        raise ValueError(f"{name} is {number}; accepted: below 2^63")
    return number
