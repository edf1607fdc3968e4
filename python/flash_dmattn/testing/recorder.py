"""A watch on this package's operators."""

from typing import Any, Dict, List, Optional, Tuple

from torch.utils._python_dispatch import TorchDispatchMode

from flash_dmattn.operators import NAMESPACE


class Recorder(TorchDispatchMode):
    """Keeps the calls of this package's operators. Within it calls go through operators, because torch watches them.

    Attributes
    ----------
    calls : list
        Operator and arguments of each call, in order.
    """

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.calls: List[Tuple[Any, Tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        """Keep a call and let it go on."""
        if func.namespace == NAMESPACE:
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))
