"""Giving freed memory back to the system, where the C library keeps it."""

import ctypes
import sys
from functools import cache


def release_freed() -> None:
    """Return free pages of the C heap; does nothing where the C library has no such call (it is glibc's).

    Watching a forward pass keeps small numbers of every block, which split the places of freed tensors: by the last
    block the heap holds several hundred MB that nothing uses, on top of which the logits would come.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim():
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
