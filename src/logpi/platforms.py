"""What depends on the operating system, each with a fallback or a refusal: the only module that asks which one runs.

Linux is tested. macOS takes the same calls, F_FULLFSYNC for fsync. Windows is refused where a promise would not hold.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from logpi.errors import InputError

try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl: Any = None
    resource: Any = None


def require_posix(purpose: str) -> None:
    """Raise InputError where the system has no POSIX locks, signals and process groups."""
    if fcntl is None:
        raise InputError(f"{purpose} needs Linux or macOS (file locks, signals, process groups): use WSL on Windows")


def flush_to_disk(descriptor: int) -> None:
    """Return when the file's content would survive a power cut."""
    full_flush = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone stops at the drive's cache
    if full_flush is not None:
        with contextlib.suppress(OSError):  # not every file system there has it
            fcntl.fcntl(descriptor, full_flush)
            return
    os.fsync(descriptor)


def flush_folder(path: Path) -> None:
    """Return when the folder's entries (renames, new files) would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        flush_to_disk(descriptor)
    finally:
        os.close(descriptor)


def keep_freed_memory() -> None:
    """Keep large blocks that are freed for the next one of their size, where the C library is glibc: it would give them
    back to the system and fetch them again thousands of times a step, a page at a time."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 1 << 30)
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def keep_few_kernels() -> None:
    """Let oneDNN hold the kernels of its last 128 shapes, not of 1024, unless the environment says otherwise. Lengths
    differ from step to step: most shapes come once, and what is held of one takes about half a megabyte."""
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # oneDNN's own, and torch's in front of it
        os.environ.setdefault(cache, "128")


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def try_lock(descriptor: int) -> bool:
    """Take the file's exclusive lock if it is free; the system gives it back when the process ends, however it ends."""
    require_posix("a run's folder")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def peak_memory_bytes() -> int:
    """Return the most that this process has held in memory so far."""
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_bytes() -> int | None:
    """Return how much memory there is for all processes: the machine's, or its control group's limit; None: unknown."""
    found = []
    with contextlib.suppress(ValueError, OSError, AttributeError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container; version 2, version 1
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path("/sys/fs/cgroup", name).read_text()))
    return min(found, default=None)


def kill_group(pid: int) -> None:
    """Kill a child that leads a process group, and all that it started in it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def die_with_parent() -> None:
    """Let the kernel kill this process when the one that started it ends, however it ends (Linux)."""
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def processor() -> str:
    """Return the processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def on_signals(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Let SIGINT and SIGTERM call `handler`; return the handlers before, none off the main thread."""
    try:
        return {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        return {}


def restore_signals(handlers: dict[int, Any]) -> None:
    """Put back what `on_signals` returned."""
    for number, handler in handlers.items():
        signal.signal(number, handler)
