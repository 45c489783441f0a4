"""The work that `learner.py` measures: a model's shape, invented rollouts of realistic lengths, and their arithmetic.

Shapes and the devices' peaks are read from conf/plan.yaml, without Hydra, which a GPU machine may lack.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from carerft.planning.shapes import Shape, forward, shape_from
from carerft.rollout import Rollouts

PLAN = yaml.safe_load((Path(__file__).resolve().parents[2] / "conf" / "plan.yaml").read_text())
TINY = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 8192,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
    "model_type": "qwen2",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny": TINY,
    **{name: PLAN["models"][f"Qwen/Qwen2.5-{name.upper()}"] for name in ("0.5b", "1.5b", "3b", "7b")},
}

PROMPT, COMPLETION = 150, 600  # medians, in tokens
PROMPT_SPREAD, COMPLETION_SPREAD = 0.3, 0.7  # standard deviations of the logarithms
LONGEST_PROMPT, LONGEST_COMPLETION = 512, 3072


@dataclass(frozen=True)
class Work:
    """A measured step; every system is given the same. threads: of a CPU. compile: of ours alone."""

    shape: str
    device: str
    precision: str
    tokens_per_microbatch: int
    sequences: int
    group_size: int
    checkpointing: bool
    steps: int
    warmup: int
    seed: int
    threads: int
    compile: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """The config.json of a Qwen2."""
        return CONFIGS[self.shape]

    @property
    def sizes(self) -> Shape:
        return shape_from(self.config)

    def rollouts(self) -> Rollouts:
        return synthetic_rollouts(self.sequences, self.group_size, self.config["vocab_size"], self.seed)


def synthetic_rollouts(sequences: int, group_size: int, vocabulary: int, seed: int) -> Rollouts:
    """Random tokens. Lengths are log-normal: prompts around 150 tokens, completions around 600, cut at 3,072.

    The sampler's probability of each token is 1 / vocabulary, which is close to that of a model with random weights.
    """
    generator = torch.Generator().manual_seed(seed)

    def lengths(count: int, median: int, spread: float) -> Tensor:
        return (math.log(median) + spread * torch.randn(count, generator=generator)).exp().round().long().clamp(min=1)

    def text(lengths: Tensor) -> Tensor:
        tokens = torch.randint(vocabulary, (len(lengths), int(lengths.max())), generator=generator)
        return tokens * (torch.arange(tokens.shape[1]) < lengths[:, None])

    prompt_lengths = lengths(sequences // group_size, PROMPT, PROMPT_SPREAD).clamp(max=LONGEST_PROMPT)
    untruncated = lengths(sequences, COMPLETION, COMPLETION_SPREAD)
    tokens = text(untruncated.clamp(max=LONGEST_COMPLETION))
    rollouts = Rollouts(
        prompt_tokens=text(prompt_lengths),
        prompt_lengths=prompt_lengths,
        tokens=tokens,
        lengths=untruncated.clamp(max=LONGEST_COMPLETION),
        log_probs=torch.zeros(tokens.shape),
        finished=untruncated <= LONGEST_COMPLETION,
    )
    rollouts.log_probs[rollouts.mask()] = -math.log(vocabulary)
    return rollouts


def real_tokens(rollouts: Rollouts) -> int:
    """The number of tokens of all completions, and of each prompt once."""
    return int(rollouts.prompt_lengths.sum() + rollouts.lengths.sum())


FORMULA = """\
Useful operations of one pass: the body's, f(p, p) summed over prompts and f(n, 2p + n) over their completions, with
  f(t, c) = t x layers x (2 x weights of a layer's matrices + 2 x width of all query heads x c),
and the head's, 2 x hidden x vocabulary for each completion token; p, n: tokens of a prompt and of a completion.
A step is 3 passes (forward, and backward, which is twice that), and 1 of the reference if there is one.
Not counted: padding, prompts read again, what is computed again (activation checkpointing, the head's logits), norms,
softmax, the optimizer. Utilisation = useful operations / (seconds of the step x operations per second)"""


def useful_flops(shape: Shape, rollouts: Rollouts, passes: int) -> float:
    """The useful operations by FORMULA. passes: 3 for learning, 1 more for a reference; 1 for a forward pass alone."""
    prompts = rollouts.prompt_lengths.tolist()
    owners = rollouts.prompt_lengths.repeat_interleave(rollouts.group_size).tolist()
    completions = rollouts.lengths.tolist()
    body = sum(forward(shape, p, p) for p in prompts)
    body += sum(forward(shape, n, 2 * p + n) for p, n in zip(owners, completions, strict=True))
    return passes * (body + 2 * shape.head * sum(completions))


def peak_flops(device_name: str, precision: str) -> float | None:
    """The data sheet's operations per second of a GPU; None if conf/plan.yaml lacks the GPU."""
    name = device_name.removeprefix("NVIDIA ")
    known = next((entry for entry in PLAN["hardware"].values() if name in entry.get("names", ())), None)
    return known and known["peak"][precision] * 1e12


MODES = {
    "step": "a complete step",
    "gradient": "the gradient alone, without an optimizer",
    "reading": "forward passes of the policy alone",
}


def state_bytes(work: Work, mode: str, reference: bool) -> dict[str, float]:
    """Bytes that a step must hold, by component: all float32, and autocast's copies of the weights in bfloat16."""
    weights = 4 * work.sizes.parameters
    return {
        "weights": weights,
        "reference": weights if reference else 0,
        "gradients": weights if mode != "reading" else 0,
        "moments": 2 * weights if mode == "step" else 0,
        "bfloat16 copies": weights / 2 if work.precision == "bfloat16" and mode != "reading" else 0,
    }
