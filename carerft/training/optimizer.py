"""How the weights are updated: the optimizer's settings, and its learning rate over time."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from carerft.objective.schedules import scheduled


@dataclass(frozen=True)
class Optimization:
    """How the weights are updated; the fields of `conf/learner/` that the learner needs."""

    learning_rate: float
    steps: int
    schedule: str = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-8
    max_grad_norm: float = 1.0
    tokens_per_microbatch: int = 16384
    precision: str = "float32"
    share_prompts: bool = True
    monitor_reference: bool = True
    reference_offload: bool = False
    optimizer: str = "adamw"
    compile: bool = False


def make_optimizer(parameters: Iterable[Tensor], optimization: Optimization) -> torch.optim.Optimizer:
    """AdamW over these parameters, which are on their devices and sharded, if they are to be."""
    settings = {
        "lr": optimization.learning_rate,
        "betas": (optimization.adam_beta1, optimization.adam_beta2),
        "eps": optimization.adam_eps,
        "weight_decay": optimization.weight_decay,
    }
    if optimization.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **settings)
    from carerft.training.adamw_8bit import AdamW8bit  # which needs torchao

    return AdamW8bit(parameters, **settings)


def learning_rate_factor(step: int, optimization: Optimization) -> float:
    """What the learning rate is multiplied by at a step: linear warm-up, then constant, linear or cosine decay to 0."""
    warmup, total = optimization.warmup_steps, optimization.steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return scheduled(optimization.schedule, 1.0, 0.0, min(1.0, (step - warmup) / max(1, total - warmup)))
