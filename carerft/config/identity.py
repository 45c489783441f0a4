"""What makes two runs the same run: the part of the configuration that decides their numbers.

A key at its default counts as absent, so that a run keeps its identity when a schema gains a key. Of a class
(`_target_`) the name alone counts, not the module: code may move.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from carerft.config.settings import MOST_TOKENS, OWN_SEQUENCES, defaults, task_defaults

# These change where a run is shown, how often it is saved and measured, what its engines may take and what shares its
# work, never what it computes.
INCIDENTAL = (
    "name",
    "tracker",
    "keep_best",
    "keep_samples",
    "evaluation.every",
    "evaluation.during",
    "learner.checkpoint_every",
    "learner.checkpoint_minutes",
    "learner.keep_checkpoints",
    "learner.async_checkpoints",
    "learner.processes",
    "learner.reference_offload",
    "learner.timeout_s",
    "learner.max_restarts",
    "rollout.gpu_memory_utilization",
    "rollout.kv_cache_gib",
    "rollout.verify_sync",
    "rollout.timeout_s",
    "rollout.max_restarts",
    "reward.timeout_s",
)

OF_A_PENALTY = tuple(f"regularizer.{name}" for name in ("beta", "beta_schedule", "beta_end", "match", "estimator"))
"""Keys that decide nothing without a penalty: at another beta, the reference of a sweep is the same run."""

REPLICATE_KEYS = ("seed", "model.base")
"""What tells the replicates of a configuration apart: the seed, and the pretraining seed of the built-in base model."""

EARLIER_DEFAULTS = {
    "learner.tokens_per_microbatch": MOST_TOKENS,
    "rollout.batch_size": OWN_SEQUENCES,
    "data.path": None,
    "data.test_path": None,
}
"""Defaults of earlier versions: numbers now found by a rule that gives the same where there is room for it, and keys
that are no more."""


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted keys of a composed configuration that decide a run's numbers, and aren't at their default."""
    flat, usual = _without_modules(flatten(config)), _without_modules(defaults())
    for key, value in flat.items():
        if key.endswith("._target_"):
            usual |= {
                key.removesuffix("_target_") + name: default for name, default in task_defaults.get(value, {}).items()
            }
    idle = OF_A_PENALTY if flat.get("regularizer._target_") == "NoRegularizer" else ()
    return {
        key: value
        for key, value in flat.items()
        if not any(f"{key}.".startswith(f"{skip}.") for skip in INCIDENTAL)
        and key not in idle
        and value not in (usual.get(key, ...), EARLIER_DEFAULTS.get(key, ...))
    }


def _without_modules(flat: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.rpartition(".")[2] if key.endswith("_target_") else value for key, value in flat.items()}


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that two configurations share exactly when their decisive keys are equal."""
    return hashlib.sha256(json.dumps(decisive(config), sort_keys=True).encode()).hexdigest()[:12]


def extends(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether `new` is the training `old` with more steps: its first steps are then the same to the last bit. With a
    schedule they are not, because a schedule ends with the last step."""
    flat, more = flatten(old), flatten(new)
    schedules = (value for key, value in flat.items() if key.endswith("schedule"))
    return (
        isinstance(flat.get("steps"), int)
        and isinstance(more.get("steps"), int)
        and flat["steps"] < more["steps"]
        and all(value in (None, "constant") for value in schedules)
        and config_hash({**old, "steps": 0}) == config_hash({**new, "steps": 0})
    )


def same_cell(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a run of `new` is a run of `old`, or one with more steps, but for what tells replicates apart."""
    own = {key: flatten(new).get(key) for key in REPLICATE_KEYS}
    aligned: dict[str, Any] = {**old, "seed": own["seed"]}
    if isinstance(old.get("model"), Mapping):
        aligned["model"] = {**old["model"], "base": own["model.base"]}
    return config_hash(aligned) == config_hash(new) or extends(aligned, new)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for each decisive key that differs: `key: old -> new`."""
    before, after = decisive(old), decisive(new)
    absent = "(absent)"
    values = [defaults() | flatten(config) for config in (old, new)]
    return [
        f"{key}: {values[0].get(key, absent)} -> {values[1].get(key, absent)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, absent) != after.get(key, absent)
    ]
