"""torch.compile, for what the learner goes through thousands of times: a decoder's layers, one by one.

Everything else that goes through them (sampling token by token, a proof) has shapes of its own, each of which would be
compiled again: it is done without, `eagerly`.
"""

from contextlib import AbstractContextManager

import torch
from transformers import PreTrainedModel


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each layer when it is first gone through: equal ones once. Before they are sharded."""
    for layer in model.get_decoder().layers:
        layer.compile(dynamic=True)  # no two microbatches have the same number of tokens


def eagerly() -> AbstractContextManager[None]:
    """What is compiled, or would be, does without, for the length of a `with` block."""
    return torch.compiler.set_stance("force_eager")
