"""Memory that PyTorch frees on a CPU: keep it for the next step, and give it back from time to time."""

import ctypes
import platform


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step. The kernel would hand out new memory page by page and fill it with zeros."""
    if platform.libc_ver()[0] == "glibc":
        mallopt, m_mmap_max, m_trim_threshold = ctypes.CDLL(None).mallopt, -4, -1  # malloc.h
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)


def give_back_freed_memory() -> None:
    """Give kept memory back to the system. Otherwise gaps between small tensors that are still in use would add up."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
