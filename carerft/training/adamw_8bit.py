"""AdamW whose two moments take a byte a weight instead of four: torchao's, after Dettmers et al. (2022), "8-bit
Optimizers via Block-wise Quantization".

Each block of `BLOCK` weights of a matrix's row has one float32 scale, and each of its moments is the nearest of 256
numbers times that. torchao cuts a tensor into blocks as it lies in one process; here blocks end where rows do, so that
they are the same however many processes share out the rows, and a checkpoint of one number of them is read by another.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
import torchao.optim
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchao.optim.subclass_8bit import OptimState8bit

from carerft.model.compilation import eagerly
from carerft.training.adamw_8bit_shapes import BLOCK, is_blocked


class AdamW8bit(torchao.optim.AdamW8bit):
    """torchao's, with blocks that follow rows and a learning rate that is a plain number outside of `step`."""

    def __init__(self, parameters: Iterable[Tensor], **settings: Any):
        """settings: as of torch.optim.AdamW."""
        super().__init__(parameters, block_size=BLOCK, **settings)
        for group in self.param_groups:
            group["lr"] = self.defaults["lr"]
            for parameter in group["params"]:
                moments = {"exp_avg": _zeros(parameter, True), "exp_avg_sq": _zeros(parameter, False)}
                self.state[parameter] = {"step": torch.tensor(0.0), **moments}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As of torch.optim.AdamW. torchao compiles it for each shape, which on a CPU takes a minute for what it then
        saves in hundreds of steps: there it is left as it is."""
        rates = [group["lr"] for group in self.param_groups]
        on_cpu = all(parameter.device.type == "cpu" for group in self.param_groups for parameter in group["params"])
        try:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = torch.tensor(rate, dtype=torch.float32)
            with eagerly() if on_cpu else nullcontext():
                return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate

    def parts(self, parameter: Tensor) -> dict[str, Tensor]:
        """What its state of a parameter consists of, as plain tensors in the same memory, sharded as the parameter is:
        of a moment in 8 bits, `_codes` (the parameter's shape, uint8) and `_scale` (rows, blocks of a row)."""
        found: dict[str, Tensor] = {}
        for slot, tensor in self.state[parameter].items():
            if slot == "step" or not is_blocked(parameter.shape):
                found[slot] = tensor
                continue
            local, rows = _local(tensor), parameter.shape[0]
            codes, scale = (local.codes, local.scale) if local.numel() else (local.byte(), local.flatten())
            shape = (rows, parameter.numel() // rows // BLOCK)
            found[f"{slot}_codes"] = _placed(codes, parameter, parameter.shape)
            found[f"{slot}_scale"] = _placed(scale.view(len(codes), shape[1]), parameter, shape)
        return found


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _zeros(parameter: Tensor, signed: bool) -> Tensor:
    """A moment before the first step. A process may have no rows at all, and torchao has no empty blocks."""
    local = _local(parameter.detach())
    if is_blocked(parameter.shape) and local.numel():
        made = OptimState8bit.zeros(local.shape, signed, BLOCK, local.device, local.dtype)
    else:
        made = torch.zeros_like(local)
    return _placed(made, parameter, parameter.shape)


def _placed(local: Tensor, parameter: Tensor, shape: Iterable[int]) -> Tensor:
    """This process's part of a tensor of this shape, whose rows are shared out as the parameter's are."""
    if not isinstance(parameter, DTensor):
        return local
    shape = torch.Size(shape)
    stride = torch.empty(shape, device="meta").stride()
    placed = DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, run_check=False, shape=shape, stride=stride
    )
    return placed.to(parameter.device)  # which, offloaded, is not the mesh's
