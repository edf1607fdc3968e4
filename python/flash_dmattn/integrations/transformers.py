"""Models of Hugging Face transformers (4.56 and newer, and 5.x) on this package's attention.

:func:`patch` makes transformers' own Doge model train and generate without a mask of (query, key);
:func:`register` offers ``attn_implementation="flash_dmattn"`` to any other model.
"""

from flash_dmattn.integrations.attention_interface import register
from flash_dmattn.integrations.bounded_cache import BoundedCache
from flash_dmattn.integrations.doge import patch

__all__ = ["BoundedCache", "patch", "register"]
