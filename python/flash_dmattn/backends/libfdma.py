"""libfdma as two backends: its CUDA kernels and its CPU code. One function serves both."""

from typing import List, Optional

import torch

from flash_dmattn import _C
from flash_dmattn.attention import flash_dmattn_func
from flash_dmattn.backends.base import Backend, CallKind

CUDA_DTYPES = (torch.float16, torch.bfloat16)


def _cuda_unavailable_reason() -> Optional[str]:
    """Why no CUDA device of this process can run the kernels; None when one can. Initialises the driver, no device."""
    if not _C.cuda_built():
        return _C.cuda_unsupported_reason(0)
    if not torch.cuda.is_available():
        built_for = torch.version.cuda
        if built_for is None:
            return f"torch {torch.__version__} is built without CUDA; install a CUDA build of torch"
        return f"torch {torch.__version__} (CUDA {built_for}) finds no usable NVIDIA GPU; check the driver (nvidia-smi)"
    reasons = [_C.cuda_unsupported_reason(index) for index in range(torch.cuda.device_count())]
    return None if None in reasons else "; ".join(reason for reason in reasons if reason)


def _cuda_unsupported_reasons(kind: CallKind) -> List[str]:
    reasons = []
    if kind.dtype not in CUDA_DTYPES:
        reasons.append(f"query.dtype is {str(kind.dtype)[6:]}; accepted on CUDA: float16, bfloat16")
    device = _C.cuda_unsupported_reason(torch.cuda.current_device() if kind.device.index is None else kind.device.index)
    return reasons if device is None else [device, *reasons]


cuda = Backend("cuda", "cuda", _cuda_unavailable_reason, flash_dmattn_func, _cuda_unsupported_reasons)
cpu = Backend("cpu", "cpu", lambda: None, flash_dmattn_func)
