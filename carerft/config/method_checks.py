"""Refuses algorithms and regularizers that cannot work, as `carerft.config.checks` does all else."""

from typing import Any

from carerft.config.values import above_0, at_least, between, one_of
from carerft.errors import ConfigError
from carerft.objective.schedules import SCHEDULES

ESTIMATORS = ("exact", "unbiased", "k2", "k3")
# Of each regularizer of ours; the classes say the same (a test holds them together), but importing them takes seconds.
ESTIMATORS_OF = {
    "carerft.objective.regularizers.ReverseKL": ESTIMATORS,
    "carerft.objective.regularizers.SkewReverseKL": ESTIMATORS,
    "carerft.objective.regularizers.ForwardKL": ("exact", "unbiased", "k3"),
    "carerft.objective.regularizers.JensenShannon": ("exact", "unbiased", "k3"),
}


def check_algorithm(config: dict[str, Any]) -> None:
    """Raises ConfigError. config: as check_train's."""
    for key, allowed in {
        "ratio": ("token", "sequence"),
        "aggregation": ("sequence", "token", "constant"),
        "advantage_baseline": ("mean", "leave_one_out"),
        "advantage_std": ("sample", "population", "none"),
        "polarity": ("both", "positive", "negative"),
        "dynamic_shortage": ("error", "smaller"),
    }.items():
        one_of(config, f"algorithm.{key}", allowed)
    for key in ("advantage_eps", "overlong_penalty", "clip_high"):
        at_least(config, f"algorithm.{key}", 0)
    at_least(config, "algorithm.dynamic_rounds", 1)
    between(config, "algorithm.clip_low", 0, 1)
    buffer, penalty = (config["algorithm"].get(f"overlong_{part}") or 0 for part in ("buffer", "penalty"))
    if not 0 <= buffer <= 1:
        raise ConfigError(
            f"algorithm.overlong_buffer={buffer}: it is a share of rollout.max_tokens",
            "give a number from 0 (no penalty) to 1",
        )
    if bool(buffer) != bool(penalty):
        raise ConfigError(
            f"algorithm.overlong_buffer={buffer} with algorithm.overlong_penalty={penalty}: one does nothing without "
            "the other",
            "set both (DAPO: 0.2 and 0.5), or both to 0",
        )
    above_0(
        config, "algorithm.aggregation_constant", "write algorithm.aggregation_constant=${rollout.max_tokens}, or 1"
    )
    if config["algorithm"]["group_size"] < 2:
        raise ConfigError(
            f"algorithm.group_size={config['algorithm']['group_size']}: a group of one has no advantage to learn from",
            "use 2 or more (8 is usual)",
        )


def check_regularizer(config: dict[str, Any]) -> None:
    """As check_algorithm."""
    chosen = config["regularizer"]
    for key in ("beta", "beta_end", "entropy_bonus"):
        at_least(config, f"regularizer.{key}", 0)
    estimators = ESTIMATORS_OF.get(chosen["_target_"], ESTIMATORS)
    wrong = {"k1": "k1 has the wrong gradient; ", "k2": "k2 is defined for a KL(policy || target) alone; "}
    estimator = chosen.get("estimator")
    why = wrong.get(estimator, "") if estimator not in estimators else ""
    one_of(config, "regularizer.estimator", estimators, why=why)
    one_of(config, "regularizer.match", ("none", "local"))
    for name in ("beta", "alpha"):
        schedule, end = chosen.get(f"{name}_schedule"), chosen.get(f"{name}_end")
        one_of(config, f"regularizer.{name}_schedule", SCHEDULES)
        if schedule is not None and (schedule == "constant") != (end is None):
            raise ConfigError(
                f"regularizer.{name}_schedule={schedule} with regularizer.{name}_end={'null' if end is None else end}: "
                f"a schedule needs the value that {name} has at the last step, and a constant has none",
                f"write regularizer.{name}_schedule=linear regularizer.{name}_end=NUMBER, or neither",
            )
    for key in ("alpha", "alpha_end"):
        alpha = chosen.get(key)
        if alpha is None or 0 <= alpha < 1:
            continue
        because = "at 1 the penalty is identically zero" if alpha == 1 else "it is the share of the policy in a mixture"
        raise ConfigError(
            f"regularizer.{key}={alpha}: must be at least 0 and below 1 ({because})",
            "the paper's is 0.8; for no penalty use regularizer=none",
        )
