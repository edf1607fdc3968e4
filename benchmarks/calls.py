"""What an implementation is: three questions that each of them answers.

`reason` says why an implementation cannot run a workload (None when it can), `build` turns the workload's tensors into
a call, `remark` says where the call does less than the contract asks.
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass, field
from typing import Callable

import torch

from benchmarks.limits import OutOfTimeError
from benchmarks.workloads import Inputs, Workload

# When it is an implementation's turn, over all workloads: ours and the peers that matter most, the others, and of those
# that compile for tens of seconds the peer and ours. Where the time runs out, the last ones are left out.
FIRST, SECOND, THIRD, LAST = range(4)


@dataclass
class Call:
    """`forward` gives the output in the layout of query, `leaves` are what backward differentiates, by name.

    `held` are the bytes that the call needs beside query, key, value and bias and that were made before it: its mask.
    """

    forward: Callable[[], torch.Tensor]
    leaves: dict[str, torch.Tensor] = field(default_factory=dict)
    held: int = 0


class Impl:
    """One way to run a workload on some devices."""

    name: str
    devices: tuple[str, ...] = ("cuda",)
    passes: tuple[str, ...] = ("fwd", "bwd")
    layouts: tuple[str, ...] = ("apart",)
    turn: int = FIRST

    def is_for(self, workload: Workload) -> bool:
        named = not workload.impls or self.name in workload.impls
        return named and workload.device in self.devices and workload.layout in self.layouts

    def reason(self, workload: Workload) -> str | None:
        return None

    def remark(self, workload: Workload) -> str | None:
        return None

    def build(self, inputs: Inputs) -> Call:
        raise AssertionError(f"{type(self).__name__} defines no build")


def import_reason(module: str, attribute: str) -> str | None:
    try:
        getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a broken installation raises anything; whatever it is, it is the reason
        return f"{module}.{attribute} cannot be imported: {type(error).__name__}: {error}"
    return None


def explain_failure(run: Callable[[], object]) -> str | None:
    """Why `run` fails, in one line, or None. torch SDPA gives its reasons as warnings: they are part of the answer."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run()
        except OutOfTimeError as error:
            return str(error)
        except torch.cuda.OutOfMemoryError as error:
            return f"out of memory: {str(error).splitlines()[0]}"
        except Exception as error:  # a peer may fail in any way; the table says how
            first = (str(error).splitlines() or [""])[0]
            reasons = [str(warning.message).splitlines()[0] for warning in caught]
            return "; ".join([f"{type(error).__name__}: {first}", *reasons[:4]])
    return None
