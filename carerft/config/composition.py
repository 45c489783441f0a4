"""From what Hydra composed to settings: plain data for a run's record, and typed objects for everything else."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import carerft
from carerft.config import settings as schema
from carerft.config.settings import EvaluateSettings, TrainSettings


def data_directory(name: str) -> Path:
    """`conf/` or `experiments/`: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(carerft.__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


CONF = data_directory("conf")
"""The directory of the YAML files that Hydra composes."""


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed configuration without Hydra's own part, every interpolation resolved: what a run's record holds.

    Raises omegaconf.errors.OmegaConfBaseException where a value is missing or an interpolation leads nowhere.
    """
    own = ((str(key), config[key]) for key in config if key != "hydra")
    return {
        key: OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if OmegaConf.is_config(value) else value
        for key, value in own
    }


def train_settings(record: Mapping[str, Any]) -> TrainSettings:
    """The typed settings of a training. record: of `plain`."""
    own = {
        "algorithm": _of_a_class(record["algorithm"], schema.AlgorithmSettings),
        "regularizer": _of_a_class(record["regularizer"], schema.RegularizerSettings, schema.SkewRegularizerSettings),
        "keep_samples": schema.KeepSettings(**record.get("keep_samples", {})),
        "reward": schema.RewardSettings(**record.get("reward", {})),
        "learner": schema.LearnerSettings(**record["learner"]),
        "task": _of_a_class(record["task"], schema.TaskSettings),
    }
    return TrainSettings(**_shared(record) | own)


def evaluate_settings(record: Mapping[str, Any]) -> EvaluateSettings:
    """The typed settings of an evaluation. record: of `plain`."""
    return EvaluateSettings(**_shared(record))


def _shared(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the groups that both have as objects, and without the group `data` of earlier versions, whose
    paths tasks and benchmarks have as their own."""
    return {key: value for key, value in record.items() if key != "data"} | {
        "model": schema.ModelSettings(**record["model"]),
        "rollout": _of_a_class(record["rollout"], *schema.ROLLOUTS),
        "benchmark": {name: _of_a_class(entry, schema.TaskSettings) for name, entry in record["benchmark"].items()},
        "evaluation": schema.EvaluationSettings(
            **{**record["evaluation"], "during": schema.DuringSettings(**record["evaluation"].get("during", {}))}
        ),
        "tracker": schema.TrackerSettings(**record["tracker"]),
    }


def _of_a_class(entry: Mapping[str, Any], *kinds: Any) -> Any:
    """An object of the kind that has most of the entry's keys. It holds the entry's keys and nothing else, those of a
    user's own class included; the kind's other fields read as their defaults."""
    kind = max(kinds, key=lambda kind: sum(setting.name in entry for setting in fields(kind)))
    typed = kind.__new__(kind)
    vars(typed).update(entry)
    return typed
