"""TRL's half of `lm_head.py`, run by the Python of TRL's own environment, and what both halves share.

    python lm_head_trl.py '{"variant": "trl-rkl", "work": {"device": "cpu", "dtype": "float32", ..}}'

prints one line of JSON. Nothing here imports carerft, and TRL is imported only by `trl_loss`.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from measuring import BETA, peak, seconds, start_counting
from torch import Tensor

FLOOR_ELEMENTS = 2**28  # logits that the floor computes at once, enough for a product to run at full speed


@dataclass(frozen=True)
class Work:
    """What is computed, and how often; both environments are given the same."""

    device: str
    dtype: str
    hidden: int
    vocabulary: int
    tokens: int
    threads: int
    repeats: int
    warmup: int

    @property
    def elements(self) -> int:
        """The number of logits of one model."""
        return self.tokens * self.vocabulary


@dataclass(frozen=True)
class Inputs:
    """Random hidden states and head weights of a policy and of a reference close to it (`token_statistics`)."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    ref_hidden: Tensor
    ref_weight: Tensor
    advantages: Tensor

    @classmethod
    def random(cls, work: Work) -> "Inputs":
        generator = torch.Generator(work.device).manual_seed(0)
        dtype = getattr(torch, work.dtype)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=work.device, dtype=dtype)

        hidden = normal(work.tokens, work.hidden)
        weight = normal(work.vocabulary, work.hidden).mul_(2 * work.hidden**-0.5)  # logits of standard deviation 2
        ref_hidden, ref_weight = hidden + 0.1 * normal(work.tokens, work.hidden), weight.clone()
        targets = torch.randint(work.vocabulary, (work.tokens,), generator=generator, device=work.device)
        advantages = normal(work.tokens).float()
        return cls(hidden.requires_grad_(), weight.requires_grad_(), targets, ref_hidden, ref_weight, advantages)

    def policy_loss(self, log_prob: Tensor) -> Tensor:
        """REINFORCE's loss. Any other loss of the log-probabilities would cost the same."""
        return -(self.advantages * log_prob).mean()


Loss = Callable[[Inputs], Tensor]


@torch.no_grad()
def matmul_floor(work: Work, inputs: Inputs) -> list[float]:
    """Seconds of three bare matrix products: the logits, the gradient of hidden, and the gradient of the weight.

    Each is done once over one block of the vocabulary, of at most FLOOR_ELEMENTS logits, with operands and result in
    the inputs' precision; its time is the block's, times the number of blocks.
    """
    columns = min(work.vocabulary, FLOOR_ELEMENTS // work.tokens)
    hidden, weight = inputs.hidden.detach(), inputs.weight[:columns].detach()
    logits, grad_hidden, grad_weight = hidden.new_ones(work.tokens, columns), hidden.clone(), weight.clone()
    products = ((hidden, weight.T, logits), (logits, weight, grad_hidden), (logits.T, hidden, grad_weight))
    scale = work.vocabulary / columns
    return [scale * seconds(work.device, lambda a=a, b=b, out=out: torch.mm(a, b, out=out)) for a, b, out in products]


def measure(work: Work, loss: Loss) -> dict:
    """Times and memory of a loss's forward and backward pass. The floor is measured before and after each pass.

    seconds: of each pass. floors: each result of `matmul_floor`. extra_bytes: the largest of the passes' peaks, less
    what was allocated before the pass and less the gradients; None where memory cannot be measured. gradient_bytes:
    the sizes of the gradients of hidden and of the weight.
    """
    torch.set_num_threads(work.threads)
    inputs = Inputs.random(work)
    times, extras, gradients = [], [], []

    def forward_and_backward() -> None:
        gradients[:] = torch.autograd.grad(loss(inputs), (inputs.hidden, inputs.weight))

    for _ in range(work.warmup):
        forward_and_backward()
        matmul_floor(work, inputs)
    floors = [matmul_floor(work, inputs)]
    for _ in range(work.repeats):
        gradients.clear()
        before = start_counting(work.device)
        times.append(seconds(work.device, forward_and_backward))
        returned = [gradient.nbytes for gradient in gradients]
        if before is not None:
            extras.append(peak(work.device) - before - sum(returned))
        floors.append(matmul_floor(work, inputs))
    return {
        "seconds": times,
        "floors": floors,
        "extra_bytes": max(extras, default=None),
        "gradient_bytes": returned,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if work.device == "cuda" else "cpu",
    }


def trl_loss(variant: str) -> Loss:
    """trl-logprob: GRPO's loss with its k3, from the log-probabilities of policy and reference. trl-rkl, trl-jsd: the
    exact divergence alone, without log-probabilities."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    def log_prob(hidden: Tensor, weight: Tensor, targets: Tensor, *outputs: str) -> Tensor:
        columns, temperature, no_softcap, scale = 32768, 1.0, None, 1.0  # GRPOTrainer's values, also of `outputs`
        return ChunkedLogProbFunction.apply(
            hidden, weight, None, targets, temperature, columns, no_softcap, scale, ("log_probs", *outputs)
        )[0]

    def grpo(inputs: Inputs) -> Tensor:
        log_pi = log_prob(inputs.hidden, inputs.weight, inputs.targets, "entropy")
        with torch.no_grad():
            log_ref = log_prob(inputs.ref_hidden, inputs.ref_weight, inputs.targets)
        log_u = log_ref - log_pi
        return inputs.policy_loss(log_pi) + BETA * (torch.expm1(log_u) - log_u).mean()

    def divergence(between: float) -> Loss:
        def loss(inputs: Inputs) -> Tensor:
            return ChunkedDivergenceFunction.apply(
                inputs.hidden, inputs.weight, None, inputs.ref_hidden, inputs.ref_weight, None, between
            )[0].mean()

        return loss

    return {"trl-logprob": grpo, "trl-rkl": divergence(1.0), "trl-jsd": divergence(0.5)}[variant]


if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    print(json.dumps(measure(Work(**spec["work"]), trl_loss(spec["variant"]))))
