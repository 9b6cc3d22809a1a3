"""Memory that one update of a training frees is kept for the next, which asks for the same sizes again.

The allocator of Linux (glibc) gives large blocks back to the system as soon as they are free. Every update then asks
for new pages, which the system has to clear and map, one by one. See mallopt(3).
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Parameters of mallopt: free bytes at the end of the heap that are given back; the size from which on a block has a
mapping of its own; the number of such mappings."""

KEPT = 2**31 - 1
LARGEST_THRESHOLD = 32 << 20
"""Where glibc's own adjustment of the threshold ends, which any call of mallopt turns off."""
MAPPINGS = 65536
"""glibc's default of `M_MMAP_MAX`."""

SETTINGS_OF_THE_USER = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Inside, the C library keeps up to 2 GiB of freed memory. Without effect where it is not glibc, and where the
    environment says how it is to allocate."""
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in SETTINGS_OF_THE_USER):
        yield
        return
    glibc = ctypes.CDLL(None)
    glibc.mallopt(M_MMAP_MAX, 0)
    glibc.mallopt(M_TRIM_THRESHOLD, KEPT)
    try:
        yield
    finally:
        glibc.mallopt(M_MMAP_MAX, MAPPINGS)
        glibc.mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD)
        glibc.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_THRESHOLD)
        glibc.malloc_trim(0)
