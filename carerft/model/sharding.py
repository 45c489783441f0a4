"""A model sharded over processes by torch's FSDP2 (`fully_shard`), layer by layer.

A layer's weights are gathered while it computes, and its gradients are summed over the processes as soon as they exist.
Between passes every process holds a shard of weights, gradients and optimizer state, in float32. Gathering is a
collective operation: every process must run the model equally often. A single process shards nothing.

Only the first process needs weights at the start, in CPU memory; the others may hold the model on the meta device.
Weights are sent out layer by layer, so that no device ever holds more than one full layer.
"""

import itertools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from carerft.model.loading import decoder

Result = TypeVar("Result")


def shard(model: PreTrainedModel, mesh: DeviceMesh, precision: str, offload: bool = False) -> None:
    """Shard the first process's weights over all processes of the mesh.

    precision: "bfloat16" gathers and computes in bfloat16 and sums gradients in float32. offload: keep the shards in
    CPU memory, and copy them to the device when they are gathered.
    """
    bfloat16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": bfloat16 if precision == "bfloat16" else MixedPrecisionPolicy(),
        "offload_policy": CPUOffloadPolicy() if offload and mesh.device_type != "cpu" else OffloadPolicy(),
    }
    # The model itself comes last, with what is left: the embedding, which may also be the head, and the last norm.
    for module in (*cast(nn.ModuleList, decoder(model).layers), model):
        broadcast_module(module, mesh)
        fully_shard(module, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # the loss is a sum over processes, not a mean
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    # torch declares every attribute of a module to be a tensor or a module.
    model.as_forward = lambda function: function(model)  # pyright: ignore[reportArgumentType]  # a module may have it
    register_fsdp_forward_method(model, "as_forward")


def broadcast_module(module: nn.Module, mesh: DeviceMesh) -> None:
    """Copy the first process's parameters and buffers of a module to every process, on its device. Tensors that are
    sharded already are skipped."""
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if isinstance(tensor, DTensor):
            continue
        data = tensor.detach()
        data = torch.empty_like(data, device=mesh.device_type) if data.is_meta else data.to(mesh.device_type)
        dist.broadcast(data, group_src=0, group=mesh.get_group())
        if data.device != tensor.device:
            parameter = isinstance(tensor, nn.Parameter)
            new = nn.Parameter(data, requires_grad=tensor.requires_grad) if parameter else data.detach()
            torch.utils.swap_tensors(tensor, new)  # in place, so that tied weights stay tied


def as_forward(model: PreTrainedModel, function: Callable[[PreTrainedModel], Result]) -> Result:
    """function(model), run as the model's forward pass: it may call the decoder and use the full weights of the head
    and the embedding, which are gathered for it.

    The function must return a tensor or a tuple of tensors. Without a backward pass, the head and the embedding stay
    gathered until `reshard`.
    """
    if isinstance(model, FSDPModule):
        return cast(Callable[[Callable], Result], model.as_forward)(function)
    return function(model)


def reshard(model: nn.Module) -> None:
    """Free gathered weights, leaving each process its shard."""
    if isinstance(model, FSDPModule):
        model.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """The unsharded tensor. A collective operation if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
