"""AdamW whose two moments take one byte a weight instead of four: torchao's, after Dettmers et al. (2022), "8-bit
Optimizers via Block-wise Quantization".

Each block of `BLOCK` weights in a row of a matrix has one float32 scale, and each moment is the nearest of 256 numbers
times that scale. torchao cuts a process's part of a tensor into blocks; here blocks end where rows do, so that they do
not depend on how many processes share the rows, and any number of processes can read a checkpoint.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
import torchao.optim
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchao.optim.subclass_8bit import OptimState8bit

from carerft.training.adamw_8bit_shapes import BLOCK, is_blocked


class AdamW8bit(torchao.optim.AdamW8bit):
    """torchao's AdamW8bit, with blocks that follow rows and a learning rate that may be set to a number."""

    def __init__(self, parameters: Iterable[Tensor], **settings: Any):
        """settings: those of torch.optim.AdamW."""
        super().__init__(parameters, block_size=BLOCK, **settings)
        for group in self.param_groups:
            for parameter in group["params"]:
                moments = {"exp_avg": _zeros(parameter, True), "exp_avg_sq": _zeros(parameter, False)}
                self.state[parameter] = {"step": torch.tensor(0.0), **moments}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As torch.optim.AdamW's. torchao compiles the step for each shape. On a CPU that takes a minute, which
        hundreds of steps would not win back, so there it runs eagerly."""
        on_cpu = all(parameter.device.type == "cpu" for group in self.param_groups for parameter in group["params"])
        for group in self.param_groups:  # a tensor, because a number would be compiled into the step
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32)
        with torch.compiler.set_stance("force_eager") if on_cpu else nullcontext():
            return super().step(closure)

    def parts(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of a parameter as plain tensors that share its memory, sharded as the parameter is. A moment in 8
        bits is two tensors: `_codes` (the parameter's shape, uint8) and `_scale` (rows, blocks of a row)."""
        parts: dict[str, Tensor] = {}
        for slot, tensor in self.state[parameter].items():
            if slot == "step" or not is_blocked(parameter.shape):
                parts[slot] = tensor
                continue
            local: Any = _local(tensor)  # OptimState8bit, or a plain tensor if this process has no rows
            rows = parameter.shape[0]
            codes, scale = (local.codes, local.scale) if local.numel() else (local.byte(), local.flatten())
            shape = (rows, parameter.numel() // rows // BLOCK)
            parts[f"{slot}_codes"] = _sharded_like(parameter, codes, parameter.shape)
            parts[f"{slot}_scale"] = _sharded_like(parameter, scale.view(len(codes), shape[1]), shape)
        return parts


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _zeros(parameter: Tensor, signed: bool) -> Tensor:
    """A moment before the first step. A process may have no rows, for which torchao has no representation in blocks."""
    local = _local(parameter.detach())
    if is_blocked(parameter.shape) and local.numel():
        zeros = OptimState8bit.zeros(local.shape, signed, BLOCK, local.device, local.dtype)
    else:
        zeros = torch.zeros_like(local)
    return _sharded_like(parameter, zeros, parameter.shape)


def _sharded_like(parameter: Tensor, local: Tensor, shape: Iterable[int]) -> Tensor:
    """The tensor of this shape whose rows are sharded as the parameter's are. local: this process's part."""
    if not isinstance(parameter, DTensor):
        return local
    shape = torch.Size(shape)
    stride = torch.empty(shape, device="meta").stride()
    tensor = DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, run_check=False, shape=shape, stride=stride
    )
    return tensor.to(parameter.device)  # an offloaded parameter is not on the mesh's device
