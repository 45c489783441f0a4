"""torch.compile of a decoder's layers, which the learner runs thousands of times.

Other passes through them (sampling token by token, the sync check) have shapes of their own, each of which would be
compiled anew; they run under `eagerly`.
"""

from contextlib import AbstractContextManager

import torch
from transformers import PreTrainedModel


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each layer at its first call; equal layers share one compilation. Must precede sharding."""
    for layer in model.get_decoder().layers:
        layer.compile(dynamic=True)  # no two microbatches have the same number of tokens


def eagerly() -> AbstractContextManager[None]:
    """A context in which compiled modules run without compilation."""
    return torch.compiler.set_stance("force_eager")
