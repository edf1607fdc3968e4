"""The backends, in order of preference."""

from typing import List, Tuple

from flash_dmattn.backends import libfdma
from flash_dmattn.backends.base import Backend


def _not_in_this_version(name: str) -> Backend:
    return Backend(name, "cuda", lambda: f"this version of flash_dmattn has no {name} backend", None)


BACKENDS: Tuple[Backend, ...] = (
    libfdma.cuda,
    _not_in_this_version("triton"),
    _not_in_this_version("flex"),
    libfdma.cpu,
)


def get_available_backends() -> List[str]:
    """Return the names of the backends that can run in this process, best first.

    ``"cuda"``, ``"triton"`` and ``"flex"`` take CUDA tensors, ``"cpu"`` takes CPU tensors and is always there, last.

    Examples
    --------
    >>> from flash_dmattn import get_available_backends
    >>> get_available_backends()[-1]
    'cpu'
    """
    return [backend.name for backend in BACKENDS if backend.unavailable_reason() is None]


def find_backend(name: str) -> Backend:
    """Return the backend of that name.

    Raises
    ------
    ValueError
        No backend has that name.
    RuntimeError
        It cannot run in this process. The message says why.
    """
    for backend in BACKENDS:
        if backend.name == name:
            reason = backend.unavailable_reason()
            if reason is not None:
                raise RuntimeError(f"backend {name!r} is not available: {reason}")
            return backend
    raise ValueError(f"backend is {name!r}; accepted: None, {', '.join(repr(b.name) for b in BACKENDS)}")


def backend_for_device(device_type: str) -> Backend:
    """Return the first available backend that takes tensors on devices of this type.

    Raises
    ------
    ValueError
        No backend takes tensors of this device type.
    RuntimeError
        None of those that do is available. The message lists the reasons.
    """
    candidates = [backend for backend in BACKENDS if backend.device_type == device_type]
    if not candidates:
        accepted = " or ".join(sorted({backend.device_type for backend in BACKENDS}))
        raise ValueError(f"query is on a {device_type} device; accepted: {accepted}")
    reasons = []
    for backend in candidates:
        reason = backend.unavailable_reason()
        if reason is None:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    raise RuntimeError(f"no backend can run on {device_type} tensors\n" + "\n".join(reasons))
