"""The NVIDIA GPUs of this machine, and whether the installed torch can use them.

The driver's own program is asked, so that nothing of CUDA starts in this process: it may yet fork.
"""

import os
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path

from carerft.errors import CareError

DRIVERS = {"11": 450, "12": 525, "13": 580}
"""The oldest driver for programs of each CUDA (NVIDIA's CUDA Compatibility, "minor version compatibility")."""


@dataclass(frozen=True)
class Gpu:
    """name: such as "NVIDIA H100 80GB HBM3". memory_gib, free_gib: 0 if the driver names none. driver: its version.
    capability: CUDA's compute capability, such as 7.5; infinite if the driver names none."""

    name: str
    memory_gib: float
    free_gib: float
    driver: str
    capability: float

    @property
    def bfloat16(self) -> bool:
        """Whether it computes in bfloat16, and vLLM takes it: from Ampere on. Volta and Turing do not."""
        return self.capability >= 8


def gpus() -> list[Gpu]:
    """Those that this process may see (CUDA_VISIBLE_DEVICES); empty if nvidia-smi is absent or fails."""
    command = [
        "nvidia-smi",
        "--query-gpu=name,memory.total,memory.free,driver_version,compute_cap",
        "--format=csv,noheader,nounits",
    ]
    if hidden():
        return []
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={visible}")
    try:
        printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in printed.splitlines() if line.count(",") == 4]
    return [
        Gpu(name, _gib(total), _gib(free), driver, float(capability) if capability[:1].isdigit() else inf)
        for name, total, free, driver, capability in rows
    ]


def hidden() -> bool:
    """Whether this process was told to use no GPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")


def driver() -> str | None:
    """The version of the NVIDIA driver, also of one that nvidia-smi cannot talk to; None if none is found."""
    for gpu in gpus():
        return gpu.driver
    with suppress(OSError):
        found = re.search(r"\s(\d+\.[\d.]+)\s", Path("/proc/driver/nvidia/version").read_text())
        return found[1] if found else None
    return None


def check_gpus(otherwise: str, what: str | None = None) -> None:
    """Raise CareError if this machine has GPUs that torch, though built for CUDA, cannot use: it would silently take
    the CPU instead. what: something for which there must be a GPU. otherwise: what to do without one."""
    import torch

    cuda, version = torch.version.cuda, driver()
    present = bool(cuda) and shutil.which("nvidia-smi") is not None and not hidden()
    oldest = DRIVERS.get((cuda or "").split(".")[0], 0)
    old = present and version is not None and int(version.split(".")[0]) < oldest
    suspicious = old or not present if what else present
    if not suspicious or torch.cuda.is_available():  # which starts CUDA: it is asked last
        return
    name = next((f" ({gpu.name})" for gpu in gpus()), "")
    reason = f"torch cannot use this machine's GPU{name}" if present else f"{what} needs a GPU, and there is none"
    remedy = "nvidia-smi, and torch.cuda.init() in Python, say why"
    if not present:
        remedy = "start it where nvidia-smi and a torch for CUDA find a GPU (in a container: --gpus all)"
    elif old:
        remedy = f"install a driver of version {oldest} or newer"
    versions = f"NVIDIA driver {version or 'not found'}, torch {torch.__version__} for CUDA {cuda or 'none'}"
    raise CareError(f"{reason}: {versions}", f"{remedy}, or {otherwise}")


def _gib(mebibytes: str) -> float:
    return int(mebibytes) / 1024 if mebibytes.isdigit() else 0.0
