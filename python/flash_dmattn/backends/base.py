"""What a backend is."""

from dataclasses import dataclass
from typing import Callable, List, NamedTuple, Optional, Tuple, Union

import torch

AttentionFunction = Callable[..., Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]]]
"""The signature of :func:`flash_dmattn.flash_dmattn_func`."""


class CallKind(NamedTuple):
    """All of a call that decides which backends can serve it. Hashable: the choice is made once for each kind.

    Attributes
    ----------
    device : torch.device
        Of the query.
    dtype : torch.dtype
        Of the query.
    has_softcap : bool
        A soft cap other than 0 is asked for.
    deterministic : bool
        Reproducible gradients are asked for by the call itself.
    """

    device: torch.device
    dtype: torch.dtype
    has_softcap: bool
    deterministic: bool


@dataclass(frozen=True)
class Backend:
    """One implementation of attention.

    Attributes
    ----------
    name : str
        As users spell it.
    device_type : str
        ``torch.device.type`` of the tensors that the automatic choice gives it.
    unavailable_reason : callable
        Returns None when the backend can run in this process, otherwise why not and what would help.
    attention : callable
        Runs a call.
    unsupported_reasons : callable
        Why calls of a kind, on a device that the backend takes, are not for it; empty when they are. Only what another
        backend may take: a call that no backend takes is refused by `attention`, which knows the whole of it.
    also_takes : tuple of str
        Further device types that it takes when it is asked for by name.
    """

    name: str
    device_type: str
    unavailable_reason: Callable[[], Optional[str]]
    attention: AttentionFunction
    unsupported_reasons: Callable[[CallKind], List[str]] = lambda kind: []
    also_takes: Tuple[str, ...] = ()

    @property
    def device_types(self) -> Tuple[str, ...]:
        """Device types of the tensors that it takes."""
        return (self.device_type, *self.also_takes)


def ignored_options(kind: CallKind) -> List[str]:
    """Reasons for a backend that ignores softcap and deterministic: asked for by name it may, chosen it may not."""
    reasons = []
    if kind.has_softcap:
        reasons.append("softcap is ignored by this backend; accepted: None or 0")
    if kind.deterministic:
        reasons.append("deterministic is ignored by this backend; accepted: None or False")
    return reasons
