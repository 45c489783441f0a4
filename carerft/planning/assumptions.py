"""The assumptions of a plan where nothing was measured: conf/plan.yaml, with values changed on the command line."""

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from carerft.config.choices import cpu_multiplies_in_bfloat16
from carerft.config.gpus import gpus, hidden
from carerft.errors import ConfigError
from carerft.text import did_you_mean

GIB = 2**30
QUICK_CPU = "cpu_bfloat16"
"""The kind of a CPU that multiplies in bfloat16."""


@dataclass
class Device:
    """One GPU, or cores of a CPU that one run uses together. conf/plan.yaml explains each number."""

    memory_gib: float
    bandwidth: float  # GB/s
    peak: dict[str, float]  # TFLOP/s, by precision
    learn_share: float
    decode_share: float
    bandwidth_share: float
    kernel_us: float
    engine_step_ms: float
    reserved_gib: float
    price_per_hour: float
    engine_tokens: int
    engine_sequences: int
    names: list[str] = field(default_factory=list)

    def times(self, cores: int) -> "Device":
        """So many cores of a CPU as one device."""
        peak = {precision: cores * value for precision, value in self.peak.items()}
        return replace(self, memory_gib=cores * self.memory_gib, bandwidth=cores * self.bandwidth, peak=peak)


@dataclass
class Dataset:
    """A task or a benchmark. prompt, completion: mean tokens. max_tokens: the limit of completions, set by the run.

    choices: answers to each question of which the likelihood is computed. choice: tokens of one. shared: tokens that
    all prompts begin with.
    """

    questions: int = field(metadata={"least": 1})
    prompt: float
    completion: float
    max_tokens: int = 0
    choices: float = 0
    choice: float = 0
    shared: float = 0


@dataclass
class Assumptions:
    """conf/plan.yaml. models: the config.json of each, by hub name. texts: datasets by name. start_s: by rollout."""

    hardware: dict[str, Device]
    models: dict[str, Any]
    texts: dict[str, Dataset]
    dynamic: dict[str, float]
    start_s: dict[str, float]
    disk: float
    transfer: float


def load(overrides: Sequence[str] = ()) -> Assumptions:
    """conf/plan.yaml with these `key=value` applied. Raises ConfigError for an unknown key or a wrong value."""
    from omegaconf import OmegaConf  # here: benchmarks/gpu.sh is for machines that may lack it
    from omegaconf.errors import OmegaConfBaseException

    from carerft.config.composition import CONF
    from carerft.config.constraints import check_constraints

    config = OmegaConf.merge(OmegaConf.structured(Assumptions), OmegaConf.load(CONF / "plan.yaml"))
    OmegaConf.set_struct(config, True)
    for override in overrides:
        try:
            config.merge_with_dotlist([override])
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{override}: {reason}", "write key=number, with a key of conf/plan.yaml") from error
    assumptions: Any = OmegaConf.to_object(config)
    for name, dataset in assumptions.texts.items():
        check_constraints(dataset, f"texts.{name}.")
    return assumptions


@dataclass(frozen=True)
class Hardware:
    """`count` devices of one kind in one machine; those of a CPU are its cores. here: whether it is this machine."""

    kind: str
    count: int
    device: Device
    here: bool = False

    @property
    def cpu(self) -> bool:
        return self.kind in ("cpu", QUICK_CPU)


def hardware(name: str, assumptions: Assumptions) -> Hardware:
    """The hardware of a name such as "8xh100" or "h100"; "this" is the machine that runs this process.

    Raises ConfigError for a kind that conf/plan.yaml does not describe, and for a machine with different GPUs.
    """
    kinds, here = assumptions.hardware, name == "this"
    if here:
        name = _this_machine(kinds)
    match = re.fullmatch(r"(?:([1-9]\d*)x)?([a-z]\w*)", name.lower())
    if not match or match[2] not in kinds:
        raise ConfigError(
            f"hardware={name}: there is no such device in conf/plan.yaml",
            f"{did_you_mean(match[2] if match else name, list(kinds))}write a number and a kind, as in 8xh100; kinds: "
            f"{', '.join(kinds)}",
        )
    count, kind, device = int(match[1] or 1), match[2], kinds[match[2]]
    found = Hardware(kind, count, device, here)
    if here and found.cpu:
        return replace(found, device=replace(device, memory_gib=machine_memory() / count / GIB))
    return found


def machine_memory() -> int:
    """Bytes of memory of this machine, or of the container that this process is in."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # of control groups, version 2 and 1
        with suppress(OSError, ValueError):  # "max" is no number
            sizes.append(int(Path("/sys/fs/cgroup", limit).read_text()))
    return min(sizes)


def _this_machine(kinds: dict[str, Device]) -> str:
    """The number and kind of this machine's GPUs, as nvidia-smi has them, or of its cores."""
    found, chosen = gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if not found and chosen and not hidden() and shutil.which("nvidia-smi"):
        raise ConfigError(
            f"hardware=this: nvidia-smi knows no GPU {chosen}, which CUDA_VISIBLE_DEVICES names (a part of one?)",
            "name the most similar kind and correct its numbers, as in hardware=h100 hardware.h100.memory_gib=...",
        )
    if not found:
        return f"{os.cpu_count() or 1}x{QUICK_CPU if cpu_multiplies_in_bfloat16() else 'cpu'}"
    if len({(gpu.name, gpu.memory_gib) for gpu in found}) > 1:
        raise ConfigError(
            f"hardware=this: the GPUs differ ({', '.join(gpu.name for gpu in found)}), and a plan is for equal ones",
            "choose some with CUDA_VISIBLE_DEVICES",
        )
    name, memory = found[0].name, found[0].memory_gib
    for kind, device in kinds.items():
        if name.removeprefix("NVIDIA ") in device.names and abs(memory / device.memory_gib - 1) < 0.03:
            return f"{len(found)}x{kind}"
    raise ConfigError(
        f"hardware=this: conf/plan.yaml has no row for {name} with {memory:.1f} GiB",
        "name the most similar kind and correct its numbers, as in hardware=h100 hardware.h100.memory_gib=... "
        f"hardware.h100.bandwidth=... hardware.h100.peak.bfloat16=...; kinds: {', '.join(kinds)}",
    )
