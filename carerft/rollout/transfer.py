"""Weights from the learner's GPU straight to dedicated engines' GPUs, by vLLM's own weight transfer over NCCL.

It spares the way through the CPU's memory and Ray's store that `reload` takes. Not yet run on GPUs: the tests run all
of it on a CPU but NCCL itself.

Left out: CUDA IPC. It shares memory between processes on one device, and a colocated engine is in the learner's own
process: `reload` there copies on the device, from the learner's tensors themselves.
"""

import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from carerft.model.lora import merged_weights


class PolicyWeights(WeightSource):
    """The weights of the policy that was synced last, named as in a checkpoint.

    Tied ones under each of their names, unlike vLLM's ModuleSource: without lm_head.weight, the engine's head on a CPU
    keeps its old values.
    """

    policy: torch.nn.Module

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in self]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return merged_weights(self.policy)


class Transfer:
    """One learner process and several engines in one NCCL group. What vLLM calls a VLLMWeightSyncClient.

    ask: calls one method of the worker's processes in each engine, with these arguments for each, and waits for all.
    engines: how many. devices: of each.
    """

    def __init__(self, ask: Callable[[str, Sequence[tuple]], Any], engines: int, devices: int):
        self._ask, self.engines, self.devices = ask, engines, devices
        self._source, self._sender = PolicyWeights(), None

    def send(self, policy: torch.nn.Module) -> None:
        """Replace the engines' weights by the policy's. The first call connects both sides."""
        self._source.policy = policy
        with torch.accelerator.device_index(next(policy.parameters()).device.index):  # NCCL takes the current one
            if self._sender is None:
                address = _free_address()
                group = NCCLTrainerInitInfo(*address, 1 + self.engines * self.devices, rank=0)
                self._sender = WeightTransferTrainerFactory.trainer_init(group, client=self, source=self._source)
            self._sender.send_weights()

    def close(self) -> None:
        """Leave the group. May be repeated."""
        if self._sender is not None:
            self._sender.shutdown()
            self._sender = None

    # What vLLM's sender calls, the second and third while it broadcasts.

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        places = [init_info["rank_offset"] + index * self.devices for index in range(self.engines)]
        self._all("init_weight_transfer_engine", [({**init_info, "rank_offset": place},) for place in places])

    def start_weight_update(self) -> None:
        self._all("start_weight_update", [()] * self.engines)

    def update_weights(self, update_info: Any) -> None:
        self._all("update_weights", [(update_info,)] * self.engines)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("finish_weight_update", [()] * self.engines)

    def _all(self, method: str, arguments: Sequence[tuple]) -> None:
        self._ask("transfer", [(method, *some) for some in arguments])


def _free_address() -> tuple[str, int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()
