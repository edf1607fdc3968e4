"""How query, key and value reach an entry point: apart or packed into one tensor."""

import re
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple, TypeVar

import torch

_Tensor = TypeVar("_Tensor", torch.Tensor, Optional[torch.Tensor])


class Layout(NamedTuple):
    """The tensor arguments of an entry point that hold query, key and value.

    Attributes
    ----------
    suffix : str
        Of the names of its operators.
    arguments : tuple of str
        Its tensors, as users know them. Those of rank 5 hold in their third dimension what is packed.
    packed : tuple of int
        For each argument how many tensors it holds; 1 is a tensor by itself.
    has_sequences : bool
        Whether sequences have lengths of their own, which :class:`flash_dmattn.sequences.Sequences` says.
    """

    suffix: str
    arguments: Tuple[str, ...]
    packed: Tuple[int, ...]
    has_sequences: bool = False

    def split(self, tensors: Sequence[_Tensor]) -> Tuple[_Tensor, _Tensor, _Tensor]:
        """Views of `tensors` as query, key and value; None holds as many None."""
        if len(tensors) == 3:  # nothing is packed
            query, key, value = tensors
            return query, key, value
        parts: List[_Tensor] = []
        for tensor, count in zip(tensors, self.packed):
            if count == 1:
                parts.append(tensor)
            elif tensor is None:
                parts += [None] * count
            else:
                parts += tensor.unbind(2)
        query, key, value = parts
        return query, key, value

    def in_words_of_caller(self, message: str) -> str:
        """A message of the library, in which query, key and value are called what they are in the arguments."""
        # A "finite value" is a number.
        return re.sub(r"(?<!finite )\b(query|key|value)\b", lambda found: self._spelled()[found.group()], message)

    def _spelled(self) -> Dict[str, str]:
        names = []
        for argument, count in zip(self.arguments, self.packed):
            names += [argument] if count == 1 else [f"{argument}[:, :, {index}]" for index in range(count)]
        return dict(zip(("query", "key", "value"), names))


APART = Layout("", ("query", "key", "value"), (1, 1, 1))
KVPACKED = Layout("_kvpacked", ("q", "kv"), (1, 2))
QKVPACKED = Layout("_qkvpacked", ("qkv",), (3,))
VARLEN = Layout("_varlen", APART.arguments, APART.packed, has_sequences=True)
LAYOUTS = (APART, KVPACKED, QKVPACKED, VARLEN)
