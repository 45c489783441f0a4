"""LoRA, by peft: frozen weights W, and beside some of them a product of two thin matrices that learns, W + s B A.

s is alpha / rank (Hu et al. 2021, arXiv 2106.09685). B begins at zero: the policy begins as the base model, and the
base model is the policy with its adapter off, a reference that takes no memory.

Left out: dropout. Each pass would be through another policy, and the importance ratio and the divergence from the
reference would compare those. An adapter of the head or the embeddings: the learner makes logits from their plain
weights (carerft.objective.lm_head).
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
from carerft.errors import ConfigError
from carerft.model.export import replacing
from carerft.model.sharding import whole

NAME = "default"  # peft's, of a model's only adapter


def add_lora(policy: PreTrainedModel, chosen: ModelSettings, seed: int) -> None:
    """Freeze the policy and put an adapter into it, which the policy's own forward then goes through.

    seed: A is drawn from it, the same in every process. Raises ConfigError where `model.lora_targets` names no layer of
    this model, or one that is no matrix of its decoder.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=chosen.lora_rank,
        lora_alpha=chosen.lora_alpha,
        target_modules=chosen.lora_targets,
        task_type="CAUSAL_LM",
        base_model_name_or_path=policy.name_or_path,
        revision=chosen.revision,
    )
    wanted, remedy = f"model.lora_targets={chosen.lora_targets}", "write model.lora_targets=all-linear"
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            inject_adapter_in_model(config, policy, NAME)
    except (ValueError, re.error) as error:  # a string is a regular expression to peft
        raise ConfigError(f"{wanted}: {str(error).splitlines()[0]}", remedy) from error
    ends = {policy.get_input_embeddings(), policy.get_output_embeddings()}
    tuned = {name: module for name, module in policy.named_modules() if hasattr(module, "base_layer")}
    if wrong := [name for name in tuned if name not in adapted(policy) or tuned[name] in ends]:
        raise ConfigError(f"{wanted}: {wrong[0]} is not a linear layer inside the decoder", remedy)


def reference_of(policy: PreTrainedModel) -> PreTrainedModel:
    """What the policy is now, for good: a frozen copy, or, where it has an adapter, itself for `adapter_off`."""
    return policy if adapted(policy) else copy.deepcopy(policy).requires_grad_(False).eval()


def adapted(model: nn.Module) -> dict[str, Any]:
    """The layers that have an adapter, by their names in a model without one; each is peft's lora.Linear."""
    if not getattr(model, "peft_config", None):
        return {}
    from peft.tuners.lora import Linear

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear)}


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """The model without its adapter, if it has one, for the length of a `with` block."""
    layers = adapted(model).values()
    # Not by peft's enable_adapters(False), which also freezes A and B: FSDP looks once, in the first pass, whose
    # gradients it will have to round, and that pass is the reference's.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each weight by its name in a checkpoint without adapters, one at a time: W + s B A where there is one.

    Weights are whole: where they are sharded, all processes must ask for them.
    """
    layers = adapted(model)
    for name, tensor in model.state_dict().items():
        if layers and ".lora_" in name:
            continue
        weight = whole(tensor)
        if layers and weight.dtype == torch.bfloat16:  # see `round_matrices`
            weight = weight.float()
        owner, _, part = name.rpartition(".base_layer.")
        if owner in layers and part == "weight":
            weight = weight + _product(layers[owner])
        yield f"{owner}.{part}" if owner in layers else name, weight


def _product(layer: Any) -> Tensor:
    """s B A of a layer."""
    product = whole(layer.lora_B[NAME].weight.detach()) @ whole(layer.lora_A[NAME].weight.detach())
    return layer.scaling[NAME] * (product.T if layer.fan_in_fan_out else product)


def rounded(weight: Tensor, precision: torch.dtype | None) -> Tensor:
    """A weight as an engine of this precision holds it: matrices in it, vectors as they are. None: all as they are."""
    return weight if precision is None or weight.dim() < 2 else weight.to(precision)


def gathered(model: nn.Module, mesh: DeviceMesh | None, precision: torch.dtype | None = None) -> dict[str, Tensor]:
    """All of `merged_weights`, `rounded`: those of one process where they are; of several, the first has them, on the
    CPU, tied ones once."""
    if mesh is None:
        return {name: rounded(weight, precision) for name, weight in merged_weights(model)}
    first: dict[int, str] = {}
    tied = {name: first.setdefault(id(tensor), name) for name, tensor in model.state_dict(keep_vars=True).items()}
    found: dict[str, Tensor] = {}
    for name, tensor in merged_weights(model):
        known = tied.get(name, name)
        found[name] = found[known] if known != name else _on_first(rounded(tensor, precision), mesh)
    return found if mesh.get_rank() == 0 else {}


def adapter_weights(model: nn.Module, mesh: DeviceMesh | None) -> dict[str, Tensor]:
    """A and B of each layer by their names in peft's files; of several processes, the first has them, on the CPU."""
    found = {
        f"base_model.model.{name}.lora_{part}.weight": whole(module[NAME].weight.detach())
        for name, layer in adapted(model).items()
        for part, module in (("A", layer.lora_A), ("B", layer.lora_B))
    }
    return found if mesh is None or mesh.get_rank() == 0 else {}


def _on_first(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    return tensor.cpu() if mesh.get_rank() == 0 else tensor.new_empty(0)  # the others keep nothing


def export_adapter(policy: PreTrainedModel, directory: Path, weights: dict[str, Tensor]) -> None:
    """Write a directory that `PeftModel.from_pretrained(base, directory)` loads, as one act. weights: of
    `adapter_weights`."""
    with replacing(directory) as beside:
        beside.mkdir()
        contiguous = {name: tensor.contiguous().cpu() for name, tensor in weights.items()}
        save_file(contiguous, beside / "adapter_model.safetensors", metadata={"format": "pt"})
        policy.peft_config[NAME].save_pretrained(str(beside))
