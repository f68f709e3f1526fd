"""Memory that a process keeps. A step's tensors come and go; the kernel should not have to map them anew each time."""

import ctypes

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's names in mallopt(3)
MAPPED_ABOVE_MIB = 32  # the most that glibc takes
KEPT_MIB = 512


def keep_heap() -> bool:
    """Have glibc keep up to KEPT_MIB of what is freed; False where the C library is another. May be called again.

    By itself it gives the top of the heap back as soon as a large tensor there is freed: 7 % of a small model's step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(MMAP_THRESHOLD, MAPPED_ABOVE_MIB << 20), mallopt(TRIM_THRESHOLD, KEPT_MIB << 20)])
