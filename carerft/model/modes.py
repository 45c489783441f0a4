"""Training mode without noise: the policy that learns is the policy that sampled.

In training mode a transformer drops activations and adds noise to its routers, as its configuration says. A policy
ratio or a divergence that is measured through such noise is another policy's. So no module ever computes in training
mode. Of layers that recompute their activations in the backward pass (gradient checkpointing), transformers asks that
they are in training mode: they are, but not while they compute.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def recompute_activations(policy: PreTrainedModel) -> None:
    """Gradient checkpointing: each layer's activations are computed again in the backward pass. No random states are
    kept for that, because nothing in a layer is random."""
    policy.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": False}
    )


def silence(policy: PreTrainedModel) -> None:
    """Prepare a policy for learning: in evaluation mode, and with gradient checkpointing where that is enabled."""
    policy.eval()
    for module in policy.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            layer: Any = module  # torch declares every attribute of a module to be a tensor or a module
            if not isinstance(layer._gradient_checkpointing_func, _Silent):
                layer._gradient_checkpointing_func = _Silent(layer, layer._gradient_checkpointing_func)
            layer.training = True  # of the layer alone: its parts stay in evaluation mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of a `with` block, which restores the mode of every module: without gradients, and
    without compilation (learner.compile), which each new shape would start."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


class _Silent:
    """A checkpointing function of a layer, whose forward pass it runs in evaluation mode, the second time as well."""

    def __init__(self, layer: nn.Module, checkpoint: Callable[..., Any]):
        self.layer, self.checkpoint = layer, checkpoint

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        def silent(*args: Any) -> Any:
            self.layer.training = False
            try:
                return function(*args)
            finally:
                self.layer.training = True

        return self.checkpoint(silent, *args)
