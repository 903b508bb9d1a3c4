"""Memory that PyTorch frees on a CPU: kept for the next step, and given back from time to time."""

import ctypes
import platform


def keep_freed_memory() -> None:
    """Let glibc keep what PyTorch frees for the next step; the kernel hands out a large tensor page by page, zeroed anew."""
    if platform.libc_ver()[0] == "glibc":
        mallopt, m_mmap_max, m_trim_threshold = ctypes.CDLL(None).mallopt, -4, -1  # malloc.h
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)


def give_back_freed_memory() -> None:
    """Give kept memory back to the system; small tensors that live on between the freed ones leave gaps that add up."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
