"""How far the gradient of each estimator of a penalty lies from the gradient of the penalty, and how noisy it is.

    python benchmarks/method/estimators.py [--seeds 2000] [--json FILE] [--markdown]

The subjects are random pairs of categorical distributions over 7 tokens, in float64: the reference's logits are
standard normal, the policy's are the reference's plus normal noise of standard deviation `drift`; so, as in training, a
policy that has drifted far is more peaked. For each pair, the gradient with respect to the policy's logits is found by
automatic differentiation

- of the full sum (`Regularizer.divergence`): the truth;
- of the estimate (`Regularizer.estimate`) at each of the 7 tokens that could have been sampled. Their mean, weighted by
  the behaviour policy's probabilities, is the gradient that the estimator has on average; they scatter around it.

On-policy, the behaviour policy is the policy. Off-policy, it is another: the policy's logits plus normal noise of
standard deviation 0.5, as after some updates on the same rollouts.

Beside the estimators stand `exact`, by the slope that the LM head uses, which does not sample; `k1`, which the package
has as a value to watch but not as a loss; and a mistake that is easily made with a skewed divergence: the full sum with
the mixture m taken for a constant, "exact, m detached".
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from carerft.objective.regularizers import (
    ForwardKL,
    JensenShannon,
    Regularizer,
    ReverseKL,
    SkewReverseKL,
    expectation,
    sampled_estimate,
)

TOKENS = 7
DRIFTS = (0.1, 1.0, 3.0)  # standard deviation of the logits' noise: near the reference, moderate, large
BEHIND = 0.5  # the same, of the behaviour policy from the policy when off-policy
PENALTIES: dict[str, Regularizer] = {
    "RKL (alpha = 0)": ReverseKL(),
    "SRKL, alpha = 0.8": SkewReverseKL(alpha=0.8),
    "forward KL": ForwardKL(),
    "JSD": JensenShannon(),
}

Estimate = Callable[[Tensor, Tensor, Tensor], Tensor]  # log pi, log ref, log old of the sampled token -> its term


@dataclass(frozen=True)
class Row:
    """Of one estimator under one drift: medians over the pairs of distributions.

    cosine: of its mean gradient with the exact one; None where its mean gradient is zero. norm: of its mean gradient
    over that of the exact one. noise: standard deviation of the gradient of one sample over the norm of the exact one.
    """

    penalty: str
    estimator: str
    policy: str
    drift: float
    cosine: float | None
    norm: float
    noise: float


@dataclass(frozen=True)
class Pairs:
    """(S, 7) logits of policies, log-probabilities of references and of the policies that sampled."""

    logits: Tensor
    log_ref: Tensor
    log_old: Tensor

    @classmethod
    def random(cls, seeds: int, drift: float, behind: float) -> "Pairs":
        """The same standard normal numbers at every drift, so that rows differ by nothing else."""
        generator = torch.Generator().manual_seed(0)
        reference, to_policy, to_old = torch.randn(3, seeds, TOKENS, generator=generator, dtype=torch.float64)
        logits = reference + drift * to_policy
        log_old = (logits + behind * to_old).log_softmax(-1)
        return cls(logits.requires_grad_(), reference.log_softmax(-1), log_old)

    @property
    def log_pi(self) -> Tensor:
        return self.logits.log_softmax(-1)

    def gradient(self, of: Tensor) -> Tensor:
        """(S,) values, one of each pair -> (S, 7)."""
        return torch.autograd.grad(of.sum(), self.logits, retain_graph=True)[0]


def estimates(penalty: Regularizer) -> dict[str, Estimate]:
    """Every estimate from one sample that this penalty has, and k1 where its definition makes sense."""
    names = [name for name in penalty.ESTIMATORS if name != "exact"]
    found: dict[str, Estimate] = {name: dataclasses.replace(penalty, estimator=name).estimate for name in names}
    if penalty.log_target(torch.zeros(1), torch.zeros(1)) is not None:
        found["k1"] = lambda log_pi, log_ref, _: sampled_estimate(penalty.log_target(log_pi, log_ref) - log_pi, "k1")
    return found


def sampled_gradients(pairs: Pairs, estimate: Estimate) -> tuple[Tensor, Tensor]:
    """The mean gradient (S, 7) of an estimate over what the behaviour policy samples, and its deviation (S,)."""
    terms = estimate(pairs.log_pi, pairs.log_ref, pairs.log_old)
    gradients = torch.stack([pairs.gradient(term) for term in terms.unbind(-1)], dim=1)  # (S, sampled token, 7)
    probability = pairs.log_old.exp()[..., None]
    mean = (probability * gradients).sum(1)
    return mean, (probability * (gradients - mean[:, None]).square()).sum((1, 2)).sqrt()


def exact_by_slope(pairs: Pairs, penalty: Regularizer) -> Tensor:
    """(S, 7): the gradient as carerft.objective.lm_head computes it."""
    with torch.no_grad():
        _, slope = penalty.summand_and_slope(pairs.log_pi, pairs.log_ref)
        return slope - pairs.log_pi.exp() * slope.sum(-1, keepdim=True)


def measured(penalty: Regularizer, pairs: Pairs) -> dict[str, tuple[float | None, float, float]]:
    """By estimator: cosine, norm and noise of `Row`."""
    truth = pairs.gradient(penalty.divergence(pairs.log_pi, pairs.log_ref))
    still = torch.zeros(len(truth), dtype=truth.dtype)  # what does not sample has no noise
    found = {"exact": (exact_by_slope(pairs, penalty), still)}
    found |= {name: sampled_gradients(pairs, estimate) for name, estimate in estimates(penalty).items()}
    if isinstance(penalty, SkewReverseKL):
        log_m = penalty.log_target(pairs.log_pi, pairs.log_ref).detach()
        detached = expectation(pairs.log_pi, pairs.log_pi - log_m).sum(-1)
        found["exact, m detached"] = (pairs.gradient(detached), still)

    def medians(mean: Tensor, deviation: Tensor) -> tuple[float | None, float, float]:
        size = truth.norm(dim=-1)
        norm = float((mean.norm(dim=-1) / size).median())
        cosine = float(torch.cosine_similarity(mean, truth, dim=-1, eps=1e-300).median()) if norm > 1e-9 else None
        return cosine, norm, float((deviation / size).median())

    return {name: medians(*gradients) for name, gradients in found.items()}


def rows(seeds: int) -> list[Row]:
    """All of them, on-policy first."""
    return [
        Row(name, estimator, policy, drift, *numbers)
        for policy, behind in (("on-policy", 0.0), ("off-policy", BEHIND))
        for name, penalty in PENALTIES.items()
        for drift in DRIFTS
        for estimator, numbers in measured(penalty, Pairs.random(seeds, drift, behind)).items()
    ]


HEADER = ["penalty", "estimator", *(f"{column}, {drift}" for drift in DRIFTS for column in ("cosine", "norm", "noise"))]


def cells(found: list[Row]) -> list[list[str]]:
    """One line per penalty and estimator, with the columns of HEADER."""
    lines: dict[tuple[str, str], list[str]] = {}
    for row in found:
        cosine = "–" if row.cosine is None else f"{row.cosine:.3f}"
        line = lines.setdefault((row.penalty, row.estimator), [row.penalty, row.estimator])
        line += [cosine, f"{row.norm:.2f}", f"{row.noise:.1f}"]
    return list(lines.values())


def rich_table(title: str, lines: list[list[str]]) -> Table:
    shown = Table(title=title, caption="Medians. Under each name: the drift of the policy from the reference.")
    for column in HEADER:
        shown.add_column(column.replace(", ", "\n"), justify="right" if "," in column else "left", no_wrap=True)
    for penalty, group in groupby(lines, key=lambda line: line[0]):
        for number, line in enumerate(group):
            shown.add_row("" if number else penalty, *line[1:])
        shown.add_section()
    return shown


def markdown_table(lines: list[list[str]]) -> str:
    rule = ["---:" if "," in column else "---" for column in HEADER]
    return "\n".join("| " + " | ".join(line) + " |" for line in [HEADER, rule, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2000, help="pairs of distributions for each drift")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--markdown", action="store_true", help="print Markdown, as docs/method.md has it")
    options = parser.parse_args()
    console = Console()
    if not console.is_terminal:
        console.width = 120
    with console.status("differentiating"):
        found = rows(options.seeds)
    for policy in ("on-policy", "off-policy"):
        lines = cells([row for row in found if row.policy == policy])
        if options.markdown:
            print(f"{policy.capitalize()}:\n\n{markdown_table(lines)}\n")
        else:
            console.print(rich_table(policy.capitalize(), lines))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
