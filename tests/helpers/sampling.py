"""Prompts, and what a model makes of them by definition, that every sampler is compared with."""

import math

import torch
from transformers import PreTrainedModel

from carerft.rollout import Rollouts

PROMPTS = [[5, 6, 9, 2, 11], [8], [9, 1, 4, 4, 13, 12, 2, 10, 1], [6, 6, 9, 2, 11]]


def randomized(model: PreTrainedModel) -> PreTrainedModel:
    """Weights so large that position, padding, biases and norms all show in the probabilities; always the same."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = parameter.ndim == 1 and not name.endswith("bias")
            parameter.copy_(norm + 0.15 * torch.randn(parameter.shape, generator=generator))
    return model


def teacher_forced(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """(T,) log-probabilities of the completion's tokens, from one forward pass over all of it."""
    with torch.no_grad():
        logits = model.eval()(torch.tensor([prompt + completion]), use_cache=False).logits[0]
    return logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None])[:, 0]


def completions(rollouts: Rollouts) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(rollouts.tokens, rollouts.lengths, strict=True)]


def equal(a: Rollouts, b: Rollouts) -> bool:
    return completions(a) == completions(b)


def exact_distribution(model: PreTrainedModel, prompt: list[int], temperature: float, top_p: float) -> list[float]:
    """The first token's distribution, by the definitions of temperature and nucleus, in plain Python."""
    logits = model.eval()(torch.tensor([prompt])).logits[0, -1].tolist()
    weights = [math.exp(logit / temperature) for logit in logits]
    probs = [weight / sum(weights) for weight in weights]
    kept, total = set(), 0.0
    for token in sorted(range(len(probs)), key=lambda t: -probs[t]):
        if total >= top_p:
            break
        kept.add(token)
        total += probs[token]
    return [p / total if token in kept else 0.0 for token, p in enumerate(probs)]
