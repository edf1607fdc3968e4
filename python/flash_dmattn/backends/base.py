"""What a backend is."""

from dataclasses import dataclass
from typing import Callable, Optional

import torch

AttentionFunction = Callable[..., torch.Tensor]
"""The signature of :func:`flash_dmattn.flash_dmattn_func`."""


@dataclass(frozen=True)
class Backend:
    """One implementation of attention.

    Attributes
    ----------
    name : str
        As users spell it.
    device_type : str
        ``torch.device.type`` of the tensors it takes.
    unavailable_reason : callable
        Returns None when the backend can run in this process, otherwise why not and what would help.
    attention : callable or None
        Runs a call; None when this version of the package has no such backend, which its reason then says.
    """

    name: str
    device_type: str
    unavailable_reason: Callable[[], Optional[str]]
    attention: Optional[AttentionFunction]
