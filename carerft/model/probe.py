"""A short test of a model with its own weights: does a faster way to read sequences agree with the plain one?

The plain way is one forward pass of one sequence, without cache and without padding. Whoever reads otherwise (with
cached keys, padded, packed) compares itself with it before it is used, since a model that cannot be read that way does
not fail by itself: a layer that drops an argument, or builds a mask of its own, attends to other sequences.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from carerft.errors import reason
from carerft.model.loading import context_length
from carerft.model.modes import evaluating

PROMPTS, COMPLETIONS = (7, 3), (6, 3, 6, 4)  # lengths: two prompts with two completions each
# What may differ: a thousandth of what another prompt changes or, where prompts change little, 1e-4 nats, or 32 units
# in the last place of a very small log-probability.
SHARE, LEAST, PLACES = 1e-3, 1e-4, 32


@dataclass(frozen=True)
class Probe:
    """Two prompts with two completions each, (prompt, completion) by (prompt, completion), and what a plain forward
    pass makes of them.

    model: whose probabilities they are.
    log_probs: of each completion (T, V), the log-probability of every token in each of its places.
    tolerance: the largest difference, in nats, that rounding explains.
    """

    model: PreTrainedModel
    prompts: list[list[int]]
    completions: list[list[int]]
    log_probs: list[Tensor]
    tolerance: float

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, V): the head's product with hidden states (N, H)."""
        head: Any = self.model.get_output_embeddings()
        return hidden @ head.weight.T

    def mismatch(self, read: Callable[[], Tensor]) -> str:
        """How what `read` returns, logits (N, V) of all completions, one after another, is wrong; "" if it is right."""
        expected = torch.cat(self.log_probs)
        try:
            with evaluating(self.model), _precision(self.model):
                found = read().float().log_softmax(-1)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model's code raises, it cannot be read that way
            return f"it fails ({reason(error)})"
        if found.shape != expected.shape:
            return f"there are {found.shape[-1]} logits instead of {expected.shape[-1]}"
        differences = (found - expected).masked_fill(found == expected, 0.0)  # a token that both exclude: -inf in both
        difference = float(differences.abs().max())
        return "" if difference <= self.tolerance else f"log-probabilities differ by up to {difference:.2g} nats"


def probe(model: PreTrainedModel, beginning: int = 0) -> Probe | None:
    """None if there is nothing to compare with: on the meta device, where a model has no weights, or if they are not
    finite numbers, which sampling and learning report.

    beginning: how many of the prompts' first tokens are equal. Where some are, fewer mistakes show.
    """
    if model.device.type == "meta":
        return None
    sequences = iter(_tokens(model, sum(PROMPTS) + sum(COMPLETIONS)).split([*PROMPTS, *COMPLETIONS]))
    prompts = [next(sequences).tolist() for _ in PROMPTS]
    completions = [next(sequences).tolist() for _ in COMPLETIONS]
    prompts[1][:beginning] = prompts[0][:beginning]
    if context_length(model) < max(PROMPTS) + max(COMPLETIONS):  # a toy
        prompts, completions = [prompt[-2:] for prompt in prompts], [completion[:2] for completion in completions]
    completions[2] = completions[0]  # the same completion after both prompts
    with evaluating(model), _precision(model):
        log_probs = [plain_log_probs(model, prompts[i // 2], tokens) for i, tokens in enumerate(completions)]
    signal = float((log_probs[0] - log_probs[2]).abs().max())
    if any(bool(values.isnan().any()) for values in log_probs):
        return None
    rounding = PLACES * torch.finfo(torch.float32).eps * max(float(v[v.isfinite()].abs().max()) for v in log_probs)
    half = model.dtype in (torch.float16, torch.bfloat16) or _computes_in_half(model)
    return Probe(model, prompts, completions, log_probs, max(LEAST, SHARE * signal, rounding) * (100 if half else 1))


def _computes_in_half(model: PreTrainedModel) -> bool:
    """Whether attention takes nothing else, or an adapter in float32 stands beside layers that are held in bfloat16."""
    held = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return "flash" in str(model.config.get_text_config()._attn_implementation) or len(held) > 1


def _precision(model: PreTrainedModel) -> AbstractContextManager:
    """The model's own precision, but autocast where it computes in half precision alone."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=_computes_in_half(model))


def plain_log_probs(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> Tensor:
    """(T, V): the log-probability of every token in each place of the completion, by one plain forward pass."""
    tokens = torch.tensor([prompt + completion], device=model.device)
    return model(input_ids=tokens, use_cache=False).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)


def _tokens(model: PreTrainedModel, count: int) -> Tensor:
    """Tokens from all over the vocabulary, always the same, without those that have a meaning of their own."""
    embedding: Any = model.get_input_embeddings()
    size = int(embedding.weight.shape[0])
    special: set[int] = set()
    for config in (model.config, model.config.get_text_config()):
        for name, value in vars(config).items():
            if name.endswith(("token_id", "token_index")):
                special.update(v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int))
    usual = [token for token in range(size) if token not in special] or list(range(size))
    generator = torch.Generator().manual_seed(0)
    return torch.tensor(usual)[torch.randint(len(usual), (count,), generator=generator)]
