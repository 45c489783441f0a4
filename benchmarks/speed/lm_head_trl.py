"""TRL's half of `lm_head.py`, run by the Python of TRL's own environment, and the measuring that both halves share.

    python lm_head_trl.py '{"variant": "trl-rkl", "work": {"device": "cpu", "dtype": "float32", ..}}'

prints one line of JSON. Nothing here imports carerft, and TRL is imported only by `trl_loss`.
"""

import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

FLOOR_ELEMENTS = 2**28  # logits that the floor makes at once, enough for a product to run at full speed
BETA = 0.04


@dataclass(frozen=True)
class Work:
    """What is computed, and how often; everything that both environments must agree on."""

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
        """Logits of one model."""
        return self.tokens * self.vocabulary


@dataclass(frozen=True)
class Inputs:
    """Random states and weights of a policy and of a reference close to it; see `token_statistics`."""

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
        """REINFORCE's, as a stand-in: any that depends on the log-probabilities costs the same."""
        return -(self.advantages * log_prob).mean()


Loss = Callable[[Inputs], Tensor]


def seconds(device: str, work: Callable[[], object]) -> float:
    """Wall-clock time of a piece of work, all of it done when the clock is read."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begin


@torch.no_grad()
def matmul_floor(work: Work, given: Inputs) -> list[float]:
    """Seconds of the products that make logits, the gradient of hidden, and that of the weight, and of nothing else.

    Each is done once over one block of the vocabulary, of at most FLOOR_ELEMENTS logits, operands and result in the
    inputs' precision; its time is that of the block, times the number of blocks.
    """
    columns = min(work.vocabulary, FLOOR_ELEMENTS // work.tokens)
    hidden, weight = given.hidden.detach(), given.weight[:columns].detach()
    logits, grad_hidden, grad_weight = hidden.new_ones(work.tokens, columns), hidden.clone(), weight.clone()
    products = ((hidden, weight.T, logits), (logits, weight, grad_hidden), (logits.T, hidden, grad_weight))
    scale = work.vocabulary / columns
    return [scale * seconds(work.device, lambda a=a, b=b, out=out: torch.mm(a, b, out=out)) for a, b, out in products]


def start_counting(device: str) -> int | None:
    """Bytes allocated at this moment; `peak` counts from here on. None where the system does not tell."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier work has freed would hide as much of what comes
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    return _status("VmRSS")


def peak(device: str) -> int:
    """The most bytes that were allocated at once since `start_counting`."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def free_bytes(device: str) -> int | None:
    """Of the device's memory. None where the system does not tell."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return _kilobytes("/proc/meminfo", "MemAvailable") if Path("/proc/meminfo").exists() else None


def _status(field: str) -> int:
    return _kilobytes("/proc/self/status", field)


def _kilobytes(file: str, field: str) -> int:
    return 1024 * next(int(line.split()[1]) for line in Path(file).read_text().splitlines() if line.startswith(field))


def measure(work: Work, loss: Loss) -> dict:
    """Times, floors and memory of the forward and backward pass of a loss; the floor is taken before and after each.

    seconds: of each pass. floors: of each `matmul_floor`. extra_bytes: the largest of the passes' peaks above what was
    allocated before the pass and above the gradients; None where memory cannot be measured. gradient_bytes: of those
    of hidden and of the weight.
    """
    torch.set_num_threads(work.threads)
    given = Inputs.random(work)
    times, extras, gradients = [], [], []

    def both_passes() -> None:
        gradients[:] = torch.autograd.grad(loss(given), (given.hidden, given.weight))

    for _ in range(work.warmup):
        both_passes()
        matmul_floor(work, given)
    floors = [matmul_floor(work, given)]
    for _ in range(work.repeats):
        gradients.clear()
        before = start_counting(work.device)
        times.append(seconds(work.device, both_passes))
        returned = [gradient.nbytes for gradient in gradients]
        if before is not None:
            extras.append(peak(work.device) - before - sum(returned))
        floors.append(matmul_floor(work, given))
    return {
        "seconds": times,
        "floors": floors,
        "extra_bytes": max(extras, default=None),
        "gradient_bytes": returned,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if work.device == "cuda" else "cpu",
    }


def trl_loss(variant: str) -> Loss:
    """trl-logprob: the policy's and the reference's log-probabilities, loss as GRPO with its k3. trl-rkl, trl-jsd: the
    exact divergence alone, without log-probabilities."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    def log_prob(hidden: Tensor, weight: Tensor, targets: Tensor, *outputs: str) -> Tensor:
        columns, temperature, no_softcap, scale = 32768, 1.0, None, 1.0  # of GRPOTrainer, as are the outputs
        return ChunkedLogProbFunction.apply(
            hidden, weight, None, targets, temperature, columns, no_softcap, scale, ("log_probs", *outputs)
        )[0]

    def grpo(given: Inputs) -> Tensor:
        log_pi = log_prob(given.hidden, given.weight, given.targets, "entropy")
        with torch.no_grad():
            log_ref = log_prob(given.ref_hidden, given.ref_weight, given.targets)
        log_u = log_ref - log_pi
        return given.policy_loss(log_pi) + BETA * (torch.expm1(log_u) - log_u).mean()

    def divergence(between: float) -> Loss:
        def loss(given: Inputs) -> Tensor:
            return ChunkedDivergenceFunction.apply(
                given.hidden, given.weight, None, given.ref_hidden, given.ref_weight, None, between
            )[0].mean()

        return loss

    return {"trl-logprob": grpo, "trl-rkl": divergence(1.0), "trl-jsd": divergence(0.5)}[variant]


if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    print(json.dumps(measure(Work(**spec["work"]), trl_loss(spec["variant"]))))
