"""Seconds, bytes and operations per second of a device. Both environments, ours and TRL's, import this module."""

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch

BETA = 0.04  # of every penalty that is measured


def seconds(device: str, action: Callable[[], object]) -> float:
    """The wall-clock time of an action. On CUDA, the device finishes its work before the clock is read."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - begin


def matmul_flops(device: str, precision: str, repeats: int = 5) -> list[float]:
    """Operations per second of a large matrix product in this precision, one number for each repetition."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, precision)) for _ in range(2))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    return [2 * size**3 / seconds(device, lambda: torch.mm(a, b, out=out)) for _ in range(repeats)]


def start_counting(device: str) -> int | None:
    """The bytes that are allocated now; `peak` counts from here on. None where the system does not report it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        # Freed memory that the process still holds would hide as much of the memory that is allocated next.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    return _kilobytes("/proc/self/status", "VmRSS")


def peak(device: str) -> int:
    """The largest number of bytes allocated at the same time since `start_counting`."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _kilobytes("/proc/self/status", "VmHWM")


def free_bytes(device: str) -> int | None:
    """The device's free memory. None where the system does not report it."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return _kilobytes("/proc/meminfo", "MemAvailable") if Path("/proc/meminfo").exists() else None


def _kilobytes(file: str, field: str) -> int:
    """A field that the kernel gives in kilobytes, in bytes."""
    return 1024 * next(int(line.split()[1]) for line in Path(file).read_text().splitlines() if line.startswith(field))
