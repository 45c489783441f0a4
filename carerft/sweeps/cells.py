"""The runs that an experiment consists of, each with its directory and where it stands.

Composed as Hydra composes them: `carerft sweep table1 ...` and `carerft train -m experiment=table1 ...` have the same
cells. Every base model that they start from is one cell more, an evaluation.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from carerft.config.checks import check_evaluate, check_train
from carerft.config.composition import evaluate_settings, plain, train_settings
from carerft.config.identity import flatten
from carerft.config.settings import EvaluateSettings, TrainSettings
from carerft.runs.directory import locked, read_manifest
from carerft.sweeps.composition import composing
from carerft.sweeps.folders import Experiment
from carerft.tasks.templates import check_templates

# What an evaluation of a base model takes over from the runs that start from it.
MEASURED = ("seed", "samples", "model", "benchmark", "data", "evaluation", "rollout")
NOT_MEASURED = {
    *("rollout.prompts_per_batch", "rollout.max_tokens", "rollout.lookahead"),
    *("rollout.importance_correction", "rollout.importance_cap", "rollout.allow_biased_sampling"),
    *("model.adapter", "model.lora_rank", "model.lora_alpha", "model.lora_targets"),
}


@dataclass(frozen=True)
class Cell:
    """One run: the command, Hydra's overrides, the settings that follow, and the run's directory."""

    command: str
    overrides: tuple[str, ...]
    settings: TrainSettings | EvaluateSettings
    directory: Path

    @property
    def title(self) -> str:
        return "/".join(self.directory.parts[-2:])

    def status(self) -> str:
        """ "done", "running", "stopped" (nobody is at it), "failed", "interrupted" or "missing"."""
        manifest = read_manifest(self.directory)
        if manifest is None:
            return "missing"
        if manifest["status"] != "running":
            return manifest["status"]
        return "running" if locked(self.directory) else "stopped"


def cells(experiment: Experiment, overrides: Sequence[str], here: bool = True) -> list[Cell]:
    """Every run of an experiment, evaluations of base models first. overrides: as on Hydra's command line.

    here: whether they are to run on this machine, as `carerft.config.checks` asks.
    Raises ConfigError, or Hydra's own errors, for what is impossible or can't be composed.
    """
    found: list[Cell] = []
    with composing():
        for sweep in experiment.sweeps:
            for job in jobs(sweep, experiment.overrides_of(sweep, overrides)):
                found.append(_trained(job, here))
        bases = _bases(found, overrides, here)
    return bases + found


def jobs(sweep: str, overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of one sweep, as Hydra's sweeper makes them."""
    parser = OverridesParser.create()
    every = parser.parse_overrides(list(overrides))
    given = [override for override in every if not override.key_or_group.startswith("hydra")]
    fixed = [override.input_line for override in every if not override.is_sweep_override()]
    master = compose("train", [f"experiment={sweep}", *fixed], return_hydra_config=True)
    axes = [f"{key}={value}" for key, value in master.hydra.sweeper.params.items()]
    (batch,) = BasicSweeper.split_arguments([*parser.parse_overrides(axes), *given], max_batch_size=None)
    return [[f"experiment={sweep}", *job] for job in batch]


def _trained(job: Sequence[str], here: bool) -> Cell:
    composed = compose("train", list(job), return_hydra_config=True)
    settings = train_settings(plain(composed))
    check_train(settings, here)
    check_templates([settings.task, *settings.benchmark.values()])
    return Cell("train", (*job, *_choices(job, composed)), settings, _directory(composed))


def _choices(job: Sequence[str], composed: DictConfig) -> Iterator[str]:
    """What was chosen for the groups that an evaluation shares with a training: the scale may have, or the job."""
    chosen = composed.hydra.runtime.choices
    for group in ("model", "benchmark", "rollout"):
        if group in chosen and not any(text.startswith(f"{group}=") for text in job):
            yield f"{group}={chosen[group]}"


def _directory(composed: DictConfig) -> Path:
    return Path(composed.hydra.sweep.dir) / composed.hydra.sweep.subdir


def _bases(trained: Sequence[Cell], overrides: Sequence[str], here: bool) -> list[Cell]:
    """An evaluation of each model that a training starts from, measured as the training is."""
    given = [text for text in overrides if _measured(text.split("=")[0])]
    bases: dict[str, Cell] = {}
    for cell in trained:
        model = flatten({"model": vars(cell.settings.model)})
        start = json.dumps({key: value for key, value in model.items() if _measured(key)}, sort_keys=True)
        if start not in bases:
            bases[start] = _base(cell, given, here)
    return list(bases.values())


def _base(cell: Cell, given: Sequence[str], here: bool) -> Cell:
    trained = cell.settings
    groups = [text for text in cell.overrides if text.split("=")[0] in ("model", "model.path", "benchmark", "rollout")]
    wanted = {key: value for key, value in flatten(_nested(trained)).items() if _measured(key)}
    wanted |= {"name": trained.name, "precision": trained.precision}
    usual = flatten(plain(compose("evaluate", groups)))
    changed = [f"++{key}={_written(value)}" for key, value in wanted.items() if usual.get(key, ...) != value]
    place = ",".join(["base", *sorted(text for text in given if not text.startswith("seed="))])
    subdir = _written(f"{place}/seed={trained.seed}")
    where = [f"hydra.sweep.dir=outputs/{trained.name}", f"hydra.sweep.subdir={subdir}"]
    composed = compose("evaluate", [*groups, *changed, *where], return_hydra_config=True)
    settings = evaluate_settings(plain(composed))
    check_evaluate(settings, here)
    return Cell("evaluate", (*groups, *changed, *where), settings, _directory(composed))


def _nested(settings: Any) -> Any:
    """Settings as the nested dictionaries that they were made from."""
    if isinstance(settings, dict):
        return {key: _nested(value) for key, value in settings.items()}
    return {key: _nested(value) for key, value in vars(settings).items()} if is_dataclass(settings) else settings


def _measured(key: str) -> bool:
    return key.split(".")[0] in MEASURED and key not in NOT_MEASURED


def _written(value: Any) -> str:
    """A value in Hydra's grammar of overrides."""
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return json.dumps(value)
