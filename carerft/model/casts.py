"""One cast for all linear layers that read the same states.

Under autocast each linear layer rounds its input itself. Queries, keys and values, or gate and up, read the same output
of a norm, in float32: it would be rounded, and its copy kept for the backward pass, five times in each layer.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def share_casts(model: nn.Module) -> None:
    """Let linear layers that read the same tensor, one after another, read one copy of it in autocast's precision. The
    forward pass stays the same to the last bit; in the backward pass the layers' gradients are added up in that
    precision, in which each of them comes. Do not compile such a model: torch.compile finds equal casts by itself."""
    shared = _Shared()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(shared)


class _Shared:
    """A hook that remembers the last input and its cast, for as long as the input is there."""

    def __init__(self) -> None:
        self.source: Callable[[], Tensor | None] = lambda: None
        self.how: tuple[Any, ...] = ()
        self.cast: Tensor | None = None

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        x = arguments[0]
        kind = x.device.type
        if x.dtype != torch.float32 or x.is_inference() or not torch.is_autocast_enabled(kind):
            return None
        how = (x._version, torch.is_grad_enabled(), torch.get_autocast_dtype(kind))
        if self.source() is not x or self.how != how:
            self.source, self.how, self.cast = weakref.ref(x, self._forget), how, x.to(how[-1])
        return (self.cast, *arguments[1:])

    def _forget(self, source: Any) -> None:
        self.cast = None
