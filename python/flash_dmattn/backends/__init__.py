"""The backends, in order of preference."""

from typing import List, Tuple

from flash_dmattn.backends import flex, libfdma, triton
from flash_dmattn.backends.base import Backend, CallKind

BACKENDS: Tuple[Backend, ...] = (
    libfdma.cuda,
    triton.backend,
    flex.backend,
    libfdma.cpu,
)


def get_available_backends() -> List[str]:
    """Return the names of the backends that can run in this process, best first.

    ``"cuda"``, ``"triton"`` and ``"flex"`` take CUDA tensors, ``"cpu"`` takes CPU tensors and is always there, last.
    Asked for by name, ``"flex"`` takes CPU tensors too, and ``"triton"`` in its interpreter. Which of them can serve a
    call, and why not the others, says
    :func:`flash_dmattn.explain`.

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


def reasons_against(backend: Backend, kind: CallKind) -> List[str]:
    """Why a backend cannot serve calls of a kind in this process; empty when it can."""
    unavailable = backend.unavailable_reason()
    if unavailable is not None:
        return [unavailable]
    if kind.device.type not in backend.device_types:
        return [f"takes {' or '.join(backend.device_types)} tensors, query is on {kind.device}"]
    return backend.unsupported_reasons(kind)


def choose_backend(kind: CallKind) -> Backend:
    """Return the first backend for the device of a call that can serve it.

    Raises
    ------
    ValueError
        No backend takes tensors of this device type.
    RuntimeError
        None of those that do can serve the call. The message lists the reasons.
    """
    candidates = [backend for backend in BACKENDS if backend.device_type == kind.device.type]
    if not candidates:
        accepted = " or ".join(sorted({backend.device_type for backend in BACKENDS}))
        raise ValueError(f"query is on a {kind.device.type} device; accepted: {accepted}")
    against = {}
    for backend in candidates:
        against[backend.name] = reasons_against(backend, kind)
        if not against[backend.name]:
            return backend
    lines = [f"{name}: {reason}" for name, reasons in against.items() for reason in reasons]
    raise RuntimeError(f"no backend can serve this call on {kind.device}\n" + "\n".join(lines))
