"""Tiny real models, and rollouts of random tokens."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from carerft.rollout import Rollouts

VOCABULARY = 29


def tiny_model(seed: int = 0, vocabulary: int = VOCABULARY, tied: bool = True) -> PreTrainedModel:
    """A random Qwen2 whose logits are far from uniform."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=128, tie_word_embeddings=tied, initializer_range=0.2,
        eos_token_id=1, pad_token_id=0, bos_token_id=None, use_cache=True,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def compile_by(backend: str, put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Have torch.compile use this backend. put: setattr for good, or a monkeypatch's."""
    compile_module = torch.nn.Module.compile
    put(torch, "compile", partial(torch.compile, backend=backend))
    put(torch.nn.Module, "compile", lambda module, **how: compile_module(module, backend=backend, **how))


def random_rollouts(prompts: int, group: int, seed: int = 0, longest: int = 9) -> Rollouts:
    """Rollouts of random tokens and lengths, with log-probabilities near those of a uniform sampler."""
    generator = torch.Generator().manual_seed(seed)
    sequences = prompts * group

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    lengths = draw(1, longest + 1, sequences)
    lengths[0] = longest
    return Rollouts(
        prompt_tokens=draw(2, VOCABULARY, prompts, 6),
        prompt_lengths=draw(1, 7, prompts),
        tokens=draw(2, VOCABULARY, sequences, longest),
        lengths=lengths,
        log_probs=-3.3 + 0.3 * torch.randn(sequences, longest, generator=generator),
        finished=lengths < longest,
    )
