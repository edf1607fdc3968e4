"""``explain``: which backend serves a call, and why not the others."""

from typing import Dict, List, NamedTuple, Optional, TextIO

import torch

from flash_dmattn.auto import call_kind
from flash_dmattn.backends import BACKENDS, reasons_against
from flash_dmattn.backends.checks import check_call
from flash_dmattn.dynamic_mask import AttentionMask


class Explanation(NamedTuple):
    """Which backends can serve a call.

    Attributes
    ----------
    chosen : str or None
        The backend that ``flash_dmattn_func_auto()`` gives the call to; None when it raises.
    reasons : dict
        Why each backend cannot serve the call, by name, best first; an empty list for those that can.
    faults : list of str
        What no backend takes: the lines of the exception that all of them raise.
    """

    chosen: Optional[str]
    reasons: Dict[str, List[str]]
    faults: List[str]

    def __str__(self) -> str:
        """One line a reason."""
        lines = [f"every backend refuses this call: {fault}" for fault in self.faults]
        for name, reasons in self.reasons.items():
            if name == self.chosen:
                verdicts = ["serves this call: the choice of flash_dmattn_func_auto()"]
            elif not reasons:
                verdicts = ["takes calls of this kind" if self.faults else "can serve this call"]
            else:
                verdicts = [f"cannot serve this call: {reason}" for reason in reasons]
            lines += [f"{name:<8}{verdict}" for verdict in verdicts]
        return "\n".join(lines)


def explain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: Optional[AttentionMask] = None,
    attn_bias: Optional[torch.Tensor] = None,
    scale: Optional[float] = None,
    is_causal: Optional[bool] = None,
    softcap: Optional[float] = None,
    deterministic: Optional[bool] = None,
    file: Optional[TextIO] = None,
) -> Explanation:
    """Print why each backend can or cannot serve a call, and which one ``flash_dmattn_func_auto()`` chooses.

    Nothing is computed: the arguments are looked at.

    Parameters
    ----------
    query, key, value, attn_mask, attn_bias, scale, is_causal, softcap, deterministic
        As in :func:`flash_dmattn.flash_dmattn_func`. A call that no backend takes is explained, not refused.
    file : text file, optional
        Where to print. Default: the standard output.

    Returns
    -------
    Explanation
        ``chosen``, the name of the backend or None; ``reasons``, a dict from the name of each backend to the list of
        its reasons; ``faults``, what no backend takes. Its ``str()`` is what is printed.

    Raises
    ------
    TypeError
        `query` is no tensor.

    Examples
    --------
    >>> import torch
    >>> from flash_dmattn import explain
    >>> query, key, value = torch.randn(3, 1, 64, 8, 32).unbind()
    >>> explanation = explain(query, key, value, is_causal=True)
    cuda    cannot serve this call: ...
    cpu     serves this call: the choice of flash_dmattn_func_auto()
    >>> explanation.chosen
    'cpu'
    """
    kind = call_kind(query, softcap, deterministic)
    reasons = {backend.name: reasons_against(backend, kind) for backend in BACKENDS}
    faults: List[str] = []
    try:
        check_call(query, key, value, attn_mask, attn_bias, scale, is_causal, softcap, deterministic)
    except (TypeError, ValueError) as refusal:
        faults = str(refusal).splitlines()
    chosen = None
    if not faults:
        serving = (b.name for b in BACKENDS if b.device_type == kind.device.type and not reasons[b.name])
        chosen = next(serving, None)
    explanation = Explanation(chosen, reasons, faults)
    print(explanation, file=file)
    return explanation
