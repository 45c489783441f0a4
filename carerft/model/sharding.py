"""A model whose weights lie in several processes, a part in each: torch's FSDP2 (`fully_shard`), layer by layer.

A layer's weights are gathered while it computes and its gradients are summed over the processes as soon as they are
there; weights, gradients and the optimizer's state lie in float32, in parts. Gathering is an act of all processes: each
must go through the model as often as the others. One process shards nothing.

Only the first process need have the weights at the start, in the CPU's memory; the others may have the model on the
meta device, where it takes none. They come layer by layer: no device holds more than one of them whole.
"""

import itertools
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

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

Result = TypeVar("Result")


def shard(model: PreTrainedModel, mesh: DeviceMesh, precision: str, offload: bool = False) -> None:
    """Leave each process of the mesh a part of every weight of the first one's model.

    precision: "bfloat16" gathers and computes in it; gradients are summed in float32. offload: keep the parts in the
    CPU's memory, from where they are copied to the device when they are gathered.
    """
    bfloat16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": bfloat16 if precision == "bfloat16" else MixedPrecisionPolicy(),
        "offload_policy": CPUOffloadPolicy() if offload and mesh.device_type != "cpu" else OffloadPolicy(),
    }
    # After the layers the rest: embeddings, which may be the head too, and the last norm.
    for module in (*model.get_decoder().layers, model):
        spread(module, mesh)
        fully_shard(module, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # the loss is a sum over the processes, not a mean
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    model.within = MethodType(_call, model)
    register_fsdp_forward_method(model, "within")


def spread(module: nn.Module, mesh: DeviceMesh) -> None:
    """Give every process, on its device, what the first has of a module's parameters and buffers. What is sharded
    already is left as it is."""
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if isinstance(tensor, DTensor):
            continue
        held = tensor.detach()
        held = torch.empty_like(held, device=mesh.device_type) if held.is_meta else held.to(mesh.device_type)
        dist.broadcast(held, group_src=0, group=mesh.get_group())
        if held.device != tensor.device:
            weight = isinstance(tensor, nn.Parameter)
            new = nn.Parameter(held, requires_grad=tensor.requires_grad) if weight else held.detach()
            torch.utils.swap_tensors(tensor, new)  # in its place: what is tied to it has it, too


def _call(model: nn.Module, function: Callable[[Any], Result]) -> Result:
    return function(model)


def within(model: PreTrainedModel, function: Callable[[PreTrainedModel], Result]) -> Result:
    """function(model), which goes through the decoder and may use the head's and the embedding's whole weights.

    It stands for the model's forward, and so returns a tensor or a tuple of tensors. After it, without a backward pass,
    head and embedding stay whole until `put_away`.
    """
    return model.within(function) if isinstance(model, FSDPModule) else function(model)


def put_away(model: nn.Module) -> None:
    """Leave each process nothing but its part of the weights."""
    if isinstance(model, FSDPModule):
        model.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor as one process would have it. Where it is sharded, all processes must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
