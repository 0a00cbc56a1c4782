"""Memory of the CPU: keep what is freed, since the next step asks for it again.

A step of training frees its activations and gradients and allocates them anew. Blocks of some
hundred kilobytes are given back to the operating system each time, and a page that comes back from
there is faulted in and zeroed: up to a fifth of a step of a small network. The C library of Linux
raises its thresholds by itself, but only once a large block has been freed.
"""

from __future__ import annotations

import ctypes
import functools

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # names and numbers of glibc's malloc.h
_LARGEST = 32 * 2**20  # the highest value to which glibc itself would raise the first


@functools.cache
def keep() -> bool:
    """Set glibc's thresholds to the highest values that it would choose; elsewhere do nothing.

    They hold for the whole process and stay. Returns whether they were set.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or none that is loaded
        return False
    # In this order: setting the first turns glibc's own adjustment of the second off.
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, 2 * _LARGEST))
