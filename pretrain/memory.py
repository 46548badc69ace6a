"""Memory of this process: what it holds, and how the allocator treats what is freed."""

import ctypes
import os
import re
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8
"""Parameters of glibc's mallopt(3)."""
_MAPPED_BYTES = 1 << 20
_KEPT_BYTES = 4 << 20
LARGE_PARAMETERS = 100_000_000
"""Of a model from which on holes between kept blocks cost more than they save: 1.6 GiB with 150 M parameters and two
workers, while arithmetic grows faster than the pages that are touched."""
_NO_LIMIT = 2**31 - 1


def return_freed_memory() -> None:
    """Have every tensor of a megabyte returned to the system when it is freed; to be called first in a process.

    While a run starts, whole weights are made, divided and freed. Without this glibc keeps blocks of up to 32 MB, in
    holes into which nothing that comes later fits.
    """
    _mallopt({M_ARENA_MAX: 1, M_MMAP_THRESHOLD: _MAPPED_BYTES})


def keep_freed_memory(num_parameters: int = 0) -> None:
    """Have freed memory used again instead of returned to the system; to be called when training begins.

    Of a model with LARGE_PARAMETERS and more only blocks below 4 MiB are kept.

    Tensors of megabytes are made and freed in every layer of every step. Each would be mapped anew, and the kernel
    clears every page of it: a third of the CPU time that ZeRO-3 costs, and a part of every step's.
    """
    small = num_parameters < LARGE_PARAMETERS
    _mallopt({M_MMAP_MAX: 0} if small else {M_MMAP_THRESHOLD: _KEPT_BYTES})
    _mallopt({M_TRIM_THRESHOLD: _NO_LIMIT})


def _mallopt(settings: dict[int, int]) -> None:
    """Nothing happens where the C library is not glibc, or where the environment has settled it."""
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in settings.items():
            mallopt(parameter, value)


def resident_bytes() -> int:
    """This process's resident memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_resident_bytes() -> int:
    """The most resident memory this process ever had."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
