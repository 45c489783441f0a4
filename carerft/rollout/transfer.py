"""Weights from the learner's GPU straight to the GPUs of dedicated engines, by vLLM's own weight transfer over NCCL.

They avoid the CPU's memory and Ray's store, through which `rollout.weight_transfer=reload` sends them. Not yet run on
GPUs: the tests run everything but NCCL itself, on a CPU.

Left out: CUDA IPC. It shares memory between processes on one device, but a colocated engine is in the learner's own
process: there, `reload` copies on the device, from the learner's tensors.
"""

import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from carerft.model.lora import merged_weights, rounded


class PolicyWeights(WeightSource):
    """The weights of `policy`, named as in a checkpoint, `rounded` to the engines' precision.

    Unlike vLLM's ModuleSource, it sends tied weights under each of their names: without lm_head.weight, an engine on a
    CPU would keep the old values of its head.
    """

    policy: torch.nn.Module

    def __init__(self, precision: torch.dtype):
        self.precision = precision

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in self]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, rounded(weight, self.precision)) for name, weight in merged_weights(self.policy))


class Transfer:
    """One learner process and the engines in one NCCL group. This is what vLLM calls a VLLMWeightSyncClient.

    call: (method, arguments) calls one method of each engine with its own arguments, and waits for all.
    engines: how many. devices: of each. precision: of their weights.
    """

    def __init__(self, call: Callable[[str, Sequence[tuple]], Any], engines: int, devices: int, precision: torch.dtype):
        self._call, self.engines, self.devices = call, engines, devices
        self._source, self._sender = PolicyWeights(precision), None

    def send(self, policy: torch.nn.Module) -> None:
        """Replaces the engines' weights by the policy's. The first call connects both sides."""
        self._source.policy = policy
        with torch.accelerator.device_index(next(policy.parameters()).device.index):  # NCCL uses the current device
            if torch.accelerator.is_available():
                # vLLM packs the weights on streams of its own, which do not wait for the optimizer's.
                torch.accelerator.synchronize()
            if self._sender is None:
                with socket.socket() as unused:
                    unused.bind(("127.0.0.1", 0))
                    host, port = unused.getsockname()
                group = NCCLTrainerInitInfo(
                    master_address=host, master_port=port, world_size=1 + self.engines * self.devices, rank=0
                )
                self._sender = WeightTransferTrainerFactory.trainer_init(group, client=self, source=self._source)
            self._sender.send_weights()

    def close(self) -> None:
        """Leaves the group. May be repeated."""
        if self._sender is not None:
            self._sender.shutdown()
            self._sender = None

    # vLLM's sender calls these four; the second and third while it broadcasts.

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        offsets = [init_info["rank_offset"] + index * self.devices for index in range(self.engines)]
        infos = [{**init_info, "rank_offset": offset} for offset in offsets]
        self._call("transfer", [("init_weight_transfer_engine", info) for info in infos])

    def start_weight_update(self) -> None:
        self._call("transfer", [("start_weight_update",)] * self.engines)

    def update_weights(self, update_info: Any) -> None:
        self._call("transfer", [("update_weights", update_info)] * self.engines)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call("transfer", [("finish_weight_update",)] * self.engines)
