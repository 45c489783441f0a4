"""The optimizer, and its learning rate over time."""

from collections.abc import Iterable

import torch
from torch import Tensor

from carerft.config.settings import LearnerSettings
from carerft.objective.schedules import scheduled


def make_optimizer(parameters: Iterable[Tensor], settings: LearnerSettings) -> torch.optim.Optimizer:
    """AdamW over these parameters, which must already be on their devices and sharded."""
    arguments = {
        "lr": settings.learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_eps,
        "weight_decay": settings.weight_decay,
    }
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **arguments)
    from carerft.training.adamw_8bit import AdamW8bit  # which needs torchao

    return AdamW8bit(parameters, **arguments)


def learning_rate_factor(step: int, settings: LearnerSettings, steps: int) -> float:
    """The factor of the learning rate at a step: linear warm-up, then constant, or linear or cosine decay to 0.

    steps: optimizer steps of the whole run.
    """
    warmup = settings.warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return scheduled(settings.schedule, 1.0, 0.0, min(1.0, (step - warmup) / max(1, steps - warmup)))
