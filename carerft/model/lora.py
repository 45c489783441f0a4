"""LoRA, by peft: frozen weights W and, for some of them, a learned low-rank product, W + s B A.

s is alpha / rank (Hu et al. 2021, arXiv 2106.09685). B starts at zero, so the policy starts as the base model. The
base model is the policy with its adapter off, a reference that takes no memory.

Left out: dropout, because the passes whose importance ratio and divergence are compared would go through different
policies; and adapters of the head or the embedding, because the learner computes logits from their plain weights
(carerft.objective.lm_head).
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from carerft.config.settings import ModelSettings
from carerft.errors import ConfigError, reason
from carerft.model.export import atomic_directory
from carerft.model.loading import decoder
from carerft.model.modes import evaluating
from carerft.model.sharding import full_tensor

NAME = "default"  # peft's name for a model's only adapter


def add_lora(policy: PreTrainedModel, settings: ModelSettings, seed: int) -> None:
    """Freeze the policy and put an adapter into it, which the policy's own forward pass then uses.

    seed: determines A, the same in every process. Raises ConfigError if `model.lora_targets` names no layer of this
    model, or anything that is not a linear layer of its decoder.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules=settings.lora_targets,
        task_type="CAUSAL_LM",
        base_model_name_or_path=policy.name_or_path,
        revision=settings.revision,
    )
    setting = f"model.lora_targets={settings.lora_targets}"
    remedy = f"write model.lora_targets=[{','.join(linear_layers(policy))}]"
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            inject_adapter_in_model(config, policy, NAME)
    except (ValueError, re.error) as error:  # peft reads a string as a regular expression
        raise ConfigError(f"{setting}: {str(error).splitlines()[0]}", remedy) from error
    allowed = adapted_layers(policy)
    ends = {policy.get_input_embeddings(), policy.get_output_embeddings()}
    for name, module in policy.named_modules():
        if hasattr(module, "base_layer") and (name not in allowed or module in ends):
            raise ConfigError(f"{setting}: {name} is not a linear layer inside the decoder", remedy)
    if policy.device.type != "meta":
        try:  # a router that is a linear layer with a forward pass of its own fails only here
            with evaluating(policy):
                policy(input_ids=torch.tensor([[0, 1]], device=policy.device), use_cache=False)
        except Exception as error:
            raise ConfigError(f"{setting}: with this adapter the model fails ({reason(error)})", remedy) from error


def linear_layers(policy: PreTrainedModel) -> list[str]:
    """Names of layers that an adapter can be put beside: the attention's queries and values, as in the paper, or else
    all of the attention's linear layers. In mixtures of experts, other names may also be those of routers and experts,
    which are not linear layers."""
    modules = [name for name, module in decoder(policy).named_modules() if type(module) is nn.Linear]
    names = sorted({name.rpartition(".")[2] for name in modules if "attn" in name or "attention" in name})
    names = names or sorted({name.rpartition(".")[2] for name in modules})
    return ["q_proj", "v_proj"] if {"q_proj", "v_proj"} <= set(names) else names


def frozen_reference(policy: PreTrainedModel) -> PreTrainedModel:
    """The frozen reference: a copy of the current policy or, with LoRA, the policy itself, used under `adapter_off`."""
    return policy if adapted_layers(policy) else copy.deepcopy(policy).requires_grad_(False).eval()


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The layers with an adapter (peft's lora.Linear) by their names, which are those in a model without adapters."""
    if not getattr(model, "peft_config", None):
        return {}
    from peft.tuners.lora import Linear

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear)}


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Turn the model's adapter, if it has one, off for the length of a `with` block."""
    layers = adapted_layers(model).values()
    # peft's enable_adapters(False) would also freeze A and B. FSDP decides once which gradients it will have to cast:
    # in the first forward pass, which is the reference's.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each weight by its name in a checkpoint without adapters, one at a time: W + s B A for adapted layers.

    Weights are full tensors; gathering sharded ones is a collective operation.
    """
    layers = adapted_layers(model)
    for name, tensor in model.state_dict().items():
        if layers and ".lora_" in name:
            continue
        weight = full_tensor(tensor)
        if layers and weight.dtype == torch.bfloat16:  # see `round_matrices`
            weight = weight.float()
        layer, _, parameter = name.rpartition(".base_layer.")
        if layer in layers and parameter == "weight":
            weight = weight + _product(layers[layer])
        yield f"{layer}.{parameter}" if layer in layers else name, weight


def _product(layer: Any) -> Tensor:
    """s B A of an adapted layer."""
    product = full_tensor(layer.lora_B[NAME].weight.detach()) @ full_tensor(layer.lora_A[NAME].weight.detach())
    return layer.scaling[NAME] * (product.T if layer.fan_in_fan_out else product)


def rounded(weight: Tensor, precision: torch.dtype | None) -> Tensor:
    """A weight as an engine of this precision stores it: matrices are rounded, vectors are not. None: unchanged."""
    return weight if precision is None or weight.dim() < 2 else weight.to(precision)


def gather_weights(
    model: nn.Module, mesh: DeviceMesh | None, precision: torch.dtype | None = None
) -> dict[str, Tensor]:
    """All of `merged_weights`, `rounded` to this precision. With a mesh, only its first process gets them, in CPU
    memory, and tied weights share one tensor; the others get {}."""
    first_name: dict[int, str] = {}
    tied_to = {
        name: first_name.setdefault(id(tensor), name) for name, tensor in model.state_dict(keep_vars=True).items()
    }
    weights: dict[str, Tensor] = {}
    for name, weight in merged_weights(model):
        if mesh is None:
            weights[name] = rounded(weight, precision)
        elif mesh.get_rank() == 0:
            tied = weights.get(tied_to.get(name, name))
            weights[name] = rounded(weight, precision).cpu() if tied is None else tied
    return weights


def adapter_weights(model: nn.Module, mesh: DeviceMesh | None) -> dict[str, Tensor]:
    """A and B of each adapted layer by their names in peft's files. With a mesh, only its first process gets them."""
    weights = {
        f"base_model.model.{name}.lora_{part}.weight": full_tensor(module[NAME].weight.detach())
        for name, layer in adapted_layers(model).items()
        for part, module in (("A", layer.lora_A), ("B", layer.lora_B))
    }
    return weights if mesh is None or mesh.get_rank() == 0 else {}


def export_adapter(policy: PreTrainedModel, directory: Path, weights: dict[str, Tensor]) -> None:
    """Write a directory that `PeftModel.from_pretrained(base, directory)` loads. weights: from `adapter_weights`."""
    with atomic_directory(directory) as temporary:
        temporary.mkdir()
        contiguous = {name: tensor.contiguous().cpu() for name, tensor in weights.items()}
        save_file(contiguous, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        policy.peft_config[NAME].save_pretrained(str(temporary))
