"""What can be set of an objective: the fields of `conf/algorithm/` and `conf/regularizer/`.

Each setting is declared here and nowhere else: its type, its default, its constraint (the metadata, see
`carerft.config.constraints`), and what it means. No import of torch, so that a bad value is refused at once.
"""

from dataclasses import dataclass, field

from carerft.objective.schedules import SCHEDULES

ESTIMATORS = {
    **dict.fromkeys(("NoRegularizer", "ReverseKL", "SkewReverseKL"), ("exact", "unbiased", "k2", "k3")),
    "ForwardKL": ("exact", "unbiased", "k3"),
    "JensenShannon": ("exact", "unbiased", "k3"),
}
"""The estimators that each of our regularizers has. k2 exists for a KL(policy || target) alone."""


@dataclass(frozen=True)
class AlgorithmSettings:
    """A policy-gradient objective over groups of completions. The defaults are GRPO's."""

    # What tables and run names call it.
    name: str = ""
    # Completions per prompt, G. A group of one has no advantage to learn from.
    group_size: int = field(default=8, metadata={"least": 2, "remedy": "use 2 or more (8 is usual)"})
    # The importance ratio is clipped to [1 - clip_low, 1 + clip_high]. null: no bound on that side.
    clip_low: float | None = field(default=0.2, metadata={"above": 0, "below": 1})
    # The same for the upper bound.
    clip_high: float | None = field(default=0.2, metadata={"least": 0})
    # The importance ratio is taken per token, or per sequence: the geometric mean of its tokens' ratios.
    ratio: str = field(default="token", metadata={"choices": ("token", "sequence")})
    # "sequence": mean over each completion's tokens, then over completions. "token": one mean over all tokens.
    # "constant": sum over each completion's tokens divided by aggregation_constant, then mean over completions.
    aggregation: str = field(default="sequence", metadata={"choices": ("sequence", "token", "constant")})
    # The standard deviation of the group's rewards (n - 1, or n) that advantages are divided by; "none": no division.
    advantage_std: str = field(default="sample", metadata={"choices": ("sample", "population", "none")})
    # Added to that standard deviation.
    advantage_eps: float = field(default=1e-6, metadata={"least": 0})
    # What is subtracted from a reward: the mean of its group, or the mean of the group's other rewards.
    advantage_baseline: str = field(default="mean", metadata={"choices": ("mean", "leave_one_out")})
    # With aggregation=constant: what each sum is divided by.
    aggregation_constant: float = field(
        default=1.0,
        metadata={"above": 0, "remedy": "write algorithm.aggregation_constant=${rollout.max_tokens}, or 1"},
    )
    # Learn from advantages above 0 ("positive"), below 0 ("negative"), or both.
    polarity: str = field(default="both", metadata={"choices": ("both", "positive", "negative")})
    # Replace groups of equal rewards by groups of further prompts.
    dynamic_sampling: bool = False
    # Rounds of sampling for one batch, at most.
    dynamic_rounds: int = field(default=10, metadata={"least": 1})
    # What follows when the rounds found too few groups: an error, or a smaller batch.
    dynamic_shortage: str = field(default="error", metadata={"choices": ("error", "smaller")})
    # Share of rollout.max_tokens, at its end, in which a completion loses reward.
    overlong_buffer: float = field(
        default=0.0,
        metadata={
            "least": 0,
            "most": 1,
            "why": "it is a share of rollout.max_tokens",
            "remedy": "give a number from 0 (no penalty) to 1",
        },
    )
    # The reward lost at rollout.max_tokens; linearly less before.
    overlong_penalty: float = field(default=0.0, metadata={"least": 0})


@dataclass(frozen=True)
class RegularizerSettings:
    """A penalty on the distance between the policy and the base model, added to the loss as beta * penalty."""

    # Weight of the penalty in the loss.
    beta: float = field(default=0.0, metadata={"least": 0})
    # "exact": the sum over the vocabulary. "unbiased", "k2", "k3": estimates from the sampled token.
    estimator: str = "exact"
    # What tables and run names call it.
    name: str = ""
    # "local": divide beta by the divergence's strength near the base model, so that every divergence pulls there as
    # reverse KL does at that beta.
    match: str = field(default="none", metadata={"choices": ("none", "local")})
    # How beta moves from its value at the first step to beta_end at the last.
    beta_schedule: str = field(default="constant", metadata={"choices": SCHEDULES})
    # With a schedule: beta at the last step.
    beta_end: float | None = field(default=None, metadata={"least": 0})
    # Weight of the policy's entropy in the loss (subtracted).
    entropy_bonus: float = field(default=0.0, metadata={"least": 0})


@dataclass(frozen=True)
class SkewSettings(RegularizerSettings):
    """A penalty on the distance between the policy and a mixture of policy and base model."""

    # The policy's share of the mixture: 0 is reverse KL.
    alpha: float = field(
        default=0.8,
        metadata={"least": 0, "below": 1, "remedy": "the paper's is 0.8; for no penalty use regularizer=none"},
    )
    # As beta's.
    alpha_schedule: str = field(default="constant", metadata={"choices": SCHEDULES})
    # With a schedule: alpha at the last step.
    alpha_end: float | None = field(
        default=None, metadata={"least": 0, "below": 1, "remedy": "the paper's alpha is 0.8"}
    )
