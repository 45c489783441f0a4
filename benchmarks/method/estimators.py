"""How far the gradient of each estimator of a penalty lies from the gradient of the penalty, and how noisy it is.

    python benchmarks/method/estimators.py [--seeds 2000] [--json FILE] [--markdown]

The script draws random pairs of categorical distributions over 7 tokens, in float64. The reference's logits are
standard normal; the policy's logits are the reference's plus normal noise of standard deviation `drift`. Hence, as in
training, a policy that has drifted far is more peaked. For each pair, autograd computes the gradient with respect to
the policy's logits

- of the full sum (`Regularizer.divergence`): the exact gradient;
- of the estimate (`Regularizer.estimate`) at each of the 7 tokens that could have been sampled. The mean of these,
  weighted by the behaviour policy's probabilities, is the estimator's expected gradient; their scatter is its noise.

On-policy, the behaviour policy is the policy itself. Off-policy, its logits are the policy's plus normal noise of
standard deviation 0.5, as after some updates on the same rollouts.

The table also has `exact`, computed from the slope that the LM head uses, without sampling; `k1`, which the package
logs but does not offer as a loss; and a common mistake with a skewed divergence: the full sum with the mixture m taken
for a constant, "exact, m detached".
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
DRIFTS = (0.1, 1.0, 3.0)  # standard deviation of the noise in the policy's logits
BEHIND = 0.5  # standard deviation of the noise in the behaviour policy's logits, off-policy
PENALTIES: dict[str, Regularizer] = {
    "RKL (alpha = 0)": ReverseKL(),
    "SRKL, alpha = 0.8": SkewReverseKL(alpha=0.8),
    "forward KL": ForwardKL(),
    "JSD": JensenShannon(),
}

Estimate = Callable[[Tensor, Tensor, Tensor], Tensor]  # (log pi, log ref, log old) of the sampled token -> the estimate


@dataclass(frozen=True)
class Row:
    """One estimator at one drift: medians over the pairs of distributions.

    cosine: between the expected and the exact gradient; None if the expected gradient is zero. norm: of the expected
    gradient, over the norm of the exact one. noise: standard deviation of the gradient from one sample, over the same.
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
    """(S, 7) logits of the policies, and log-probabilities of the references and of the behaviour policies."""

    logits: Tensor
    log_ref: Tensor
    log_old: Tensor

    @classmethod
    def random(cls, seeds: int, drift: float, behind: float) -> "Pairs":
        """Every drift scales the same standard normal numbers, so that rows differ by the drift alone."""
        generator = torch.Generator().manual_seed(0)
        reference, to_policy, to_old = torch.randn(3, seeds, TOKENS, generator=generator, dtype=torch.float64)
        logits = reference + drift * to_policy
        log_old = (logits + behind * to_old).log_softmax(-1)
        return cls(logits.requires_grad_(), reference.log_softmax(-1), log_old)

    @property
    def log_pi(self) -> Tensor:
        return self.logits.log_softmax(-1)

    def gradient(self, values: Tensor) -> Tensor:
        """The gradient (S, 7) of values (S,), one for each pair, with respect to the pair's logits."""
        return torch.autograd.grad(values.sum(), self.logits, retain_graph=True)[0]


def estimates(penalty: Regularizer) -> dict[str, Estimate]:
    """The penalty's estimators from one sample, by name, and k1 if the penalty is a KL(policy || target)."""
    names = [name for name in penalty.ESTIMATORS if name != "exact"]
    by_name: dict[str, Estimate] = {name: dataclasses.replace(penalty, estimator=name).estimate for name in names}
    if penalty.log_target(torch.zeros(1), torch.zeros(1)) is not None:
        by_name["k1"] = lambda log_pi, log_ref, _: sampled_estimate(penalty.log_target(log_pi, log_ref) - log_pi, "k1")
    return by_name


def sampled_gradients(pairs: Pairs, estimate: Estimate) -> tuple[Tensor, Tensor]:
    """The mean (S, 7) and the standard deviation (S,) of an estimate's gradient over the behaviour policy's samples."""
    terms = estimate(pairs.log_pi, pairs.log_ref, pairs.log_old)
    gradients = torch.stack([pairs.gradient(term) for term in terms.unbind(-1)], dim=1)  # (S, sampled token, 7)
    probability = pairs.log_old.exp()[..., None]
    mean = (probability * gradients).sum(1)
    return mean, (probability * (gradients - mean[:, None]).square()).sum((1, 2)).sqrt()


def exact_by_slope(pairs: Pairs, penalty: Regularizer) -> Tensor:
    """The gradient (S, 7) by the formula of carerft.objective.lm_head."""
    with torch.no_grad():
        _, slope = penalty.summand_and_slope(pairs.log_pi, pairs.log_ref)
        return slope - pairs.log_pi.exp() * slope.sum(-1, keepdim=True)


def measure(penalty: Regularizer, pairs: Pairs) -> dict[str, tuple[float | None, float, float]]:
    """Cosine, norm and noise of `Row`, by estimator."""
    truth = pairs.gradient(penalty.divergence(pairs.log_pi, pairs.log_ref))
    no_noise = torch.zeros(len(truth), dtype=truth.dtype)  # because nothing is sampled
    gradients = {"exact": (exact_by_slope(pairs, penalty), no_noise)}
    gradients |= {name: sampled_gradients(pairs, estimate) for name, estimate in estimates(penalty).items()}
    if isinstance(penalty, SkewReverseKL):
        log_m = penalty.log_target(pairs.log_pi, pairs.log_ref).detach()
        detached = expectation(pairs.log_pi, pairs.log_pi - log_m).sum(-1)
        gradients["exact, m detached"] = (pairs.gradient(detached), no_noise)

    def medians(mean: Tensor, deviation: Tensor) -> tuple[float | None, float, float]:
        size = truth.norm(dim=-1)
        norm = float((mean.norm(dim=-1) / size).median())
        cosine = float(torch.cosine_similarity(mean, truth, dim=-1, eps=1e-300).median()) if norm > 1e-9 else None
        return cosine, norm, float((deviation / size).median())

    return {name: medians(*moments) for name, moments in gradients.items()}


def rows(seeds: int) -> list[Row]:
    """All rows, those on-policy first."""
    return [
        Row(name, estimator, policy, drift, *numbers)
        for policy, behind in (("on-policy", 0.0), ("off-policy", BEHIND))
        for name, penalty in PENALTIES.items()
        for drift in DRIFTS
        for estimator, numbers in measure(penalty, Pairs.random(seeds, drift, behind)).items()
    ]


HEADER = ["penalty", "estimator", *(f"{column}, {drift}" for drift in DRIFTS for column in ("cosine", "norm", "noise"))]


def cells(selected: list[Row]) -> list[list[str]]:
    """One line for each penalty and estimator, with the columns of HEADER."""
    lines: dict[tuple[str, str], list[str]] = {}
    for row in selected:
        cosine = "–" if row.cosine is None else f"{row.cosine:.3f}"
        line = lines.setdefault((row.penalty, row.estimator), [row.penalty, row.estimator])
        line += [cosine, f"{row.norm:.2f}", f"{row.noise:.1f}"]
    return list(lines.values())


def rich_table(title: str, lines: list[list[str]]) -> Table:
    table = Table(title=title, caption="Medians. Under each name: the drift of the policy from the reference.")
    for column in HEADER:
        table.add_column(column.replace(", ", "\n"), justify="right" if "," in column else "left", no_wrap=True)
    for penalty, group in groupby(lines, key=lambda line: line[0]):
        for number, line in enumerate(group):
            table.add_row("" if number else penalty, *line[1:])
        table.add_section()
    return table


def markdown_table(lines: list[list[str]]) -> str:
    rule = ["---:" if "," in column else "---" for column in HEADER]
    return "\n".join("| " + " | ".join(line) + " |" for line in [HEADER, rule, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2000, help="pairs of distributions for each drift")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--markdown", action="store_true", help="print Markdown, as in docs/method.md")
    options = parser.parse_args()
    console = Console()
    if not console.is_terminal:
        console.width = 120
    with console.status("computing gradients"):
        every_row = rows(options.seeds)
    for policy in ("on-policy", "off-policy"):
        lines = cells([row for row in every_row if row.policy == policy])
        if options.markdown:
            print(f"{policy.capitalize()}:\n\n{markdown_table(lines)}\n")
        else:
            console.print(rich_table(policy.capitalize(), lines))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in every_row], indent=1) + "\n")


if __name__ == "__main__":
    main()
