"""The cells of an experiment: every run that it consists of, with its settings, directory and status.

Hydra composes them: `carerft sweep table1 ...` and `carerft train -m experiment=table1 ...` have the same trainings.
An evaluation of each base model that they start from is added.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from omegaconf import DictConfig

from carerft.config.checks import check_evaluate, check_train
from carerft.config.composition import evaluate_settings, plain, train_settings
from carerft.config.identity import extends, flatten
from carerft.config.settings import EvaluateSettings, TrainSettings
from carerft.runs.directory import changed_inputs, locked, read_manifest
from carerft.runs.inputs import changed_since
from carerft.sweeps.composition import composing
from carerft.sweeps.folders import Experiment
from carerft.sweeps.loader import add_axes, parsed, swept
from carerft.sweeps.names import cell_directory
from carerft.tasks.templates import check_templates
from carerft.text import hydra_quoted

# The settings that the evaluation of a base model takes from the trainings that start from it.
MEASURED = ("seed", "samples", "model", "benchmark", "evaluation", "rollout")
NOT_MEASURED = {
    *("rollout.prompts_per_batch", "rollout.max_tokens", "rollout.lookahead"),
    *("rollout.importance_correction", "rollout.importance_cap"),
    *("rollout.temperature", "rollout.top_p", "rollout.allow_biased_sampling", "rollout.reward_truncated"),
    *("evaluation.every", "evaluation.during.limit", "evaluation.during.samples"),
    *("model.adapter", "model.lora_rank", "model.lora_alpha", "model.lora_targets"),
}


@dataclass(frozen=True)
class Cell:
    """One run: the command, Hydra's overrides, the settings that follow, and the run's directory and record."""

    command: str
    overrides: tuple[str, ...]
    settings: TrainSettings | EvaluateSettings
    directory: Path
    record: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def title(self) -> str:
        return "/".join(self.directory.parts[-2:])

    def status(self) -> str:
        """ "done", "running", "stopped" (its process died), "failed", "interrupted" or "missing"."""
        manifest = read_manifest(self.directory)
        if manifest is None:
            return "missing"
        if manifest["status"] == "done" and extends(manifest["config"], self.record):
            return "interrupted"  # it was to have fewer steps, and goes on
        if manifest["status"] != "running":
            return manifest["status"]
        return "running" if locked(self.directory) else "stopped"


def cells(experiment: Experiment, overrides: Sequence[str], here: bool = True) -> list[Cell]:
    """Every cell of an experiment, evaluations of base models first. overrides: as on Hydra's command line.

    here: whether the cells are to run on this machine; see `carerft.config.checks`.
    Raises ConfigError for impossible settings, and Hydra's errors for a configuration that cannot be composed.
    """
    with composing():
        trainings = [
            compose_training(job, here, own)
            for sweep, own in experiment.overridden(overrides).items()
            for job in jobs(sweep, own)
        ]
        return _bases(trainings, overrides, here) + trainings


def check_inputs(cells: Sequence[Cell]) -> None:
    """Raises RunDirectoryError if a cell has begun, or is done, with other data or another model than there is now."""
    for cell in cells:
        if (manifest := read_manifest(cell.directory)) and (changed := changed_since(cell.directory, manifest)):
            raise changed_inputs(cell.directory, changed)


def jobs(sweep: str, overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of one sweep, as Hydra's sweeper makes them."""
    given = list(map(parsed, overrides))
    settings = [override for override in given if not override.key_or_group.startswith("hydra")]
    fixed = [str(override.input_line) for override in given if not override.is_sweep_override()]
    master = compose("train", [f"experiment={sweep}", *fixed], return_hydra_config=True)
    axes = [parsed(f"{key}={value}") for key, value in master.hydra.sweeper.params.items()]
    (batch,) = BasicSweeper.split_arguments([*axes, *settings], max_batch_size=None)
    return [[f"experiment={sweep}", *job] for job in batch]


def compose_training(job: Sequence[str], here: bool, overrides: Sequence[str] = ()) -> Cell:
    """One training, inside `composing`. overrides: of the sweep of which it is a job. job, here, and what is raised:
    as for `cells`."""
    composed = compose("train", list(job), return_hydra_config=True)
    add_axes(composed, swept(overrides))
    record = plain(composed)
    settings = train_settings(record)
    check_train(settings, here)
    check_templates([settings.task, *settings.benchmark.values()])
    # Choices that the scale has made and not the job, for groups that an evaluation has as well.
    choices, chosen = composed.hydra.runtime.choices, {text.split("=")[0] for text in job}
    groups = [group for group in ("model", "benchmark", "rollout") if group in choices and group not in chosen]
    overrides = (*job, *(f"{group}={choices[group]}" for group in groups))
    return Cell("train", overrides, settings, _directory(composed), record)


def _directory(composed: DictConfig) -> Path:
    return Path(composed.hydra.sweep.dir, composed.hydra.sweep.subdir)


def _bases(trainings: Sequence[Cell], overrides: Sequence[str], here: bool) -> list[Cell]:
    """An evaluation of each model that a training starts from, with the settings of the training's evaluation."""
    # What only some sweeps take of the overrides tells their models apart, as what a sweep itself sets of a model does.
    shared = set.intersection(*({text.split("=")[0] for text in cell.overrides} for cell in trainings))
    measured = [text for text in overrides if (key := text.split("=")[0]) in shared and _measured(key)]
    bases: dict[str, Cell] = {}
    for cell in trainings:
        model = flatten({"model": vars(cell.settings.model)})
        start = json.dumps({key: value for key, value in model.items() if _measured(key)}, sort_keys=True)
        if start not in bases:
            bases[start] = _base(cell, measured, here)
    return list(bases.values())


def _base(training: Cell, measured: Sequence[str], here: bool) -> Cell:
    """The evaluation of the model from which a training starts. measured: overrides that are part of its name, as are
    those of the training's own sweep that it takes."""
    settings = training.settings
    shared = ("model", "model.path", "benchmark", "rollout", "tracker")
    groups = [text for text in training.overrides if text.split("=")[0] in shared or text.startswith("tracker.")]
    values = {key: value for key, value in flatten(training.record).items() if _measured(key)}
    values |= {"name": settings.name, "precision": settings.precision}
    defaults = flatten(plain(compose("evaluate", groups)))
    changed = [f"++{key}={_written(value)}" for key, value in values.items() if defaults.get(key, ...) != value]
    own = {text.split("=")[0]: text for text in training.overrides}
    given = {text.split("=")[0] for text in measured}
    of_sweep = {key for key in own if "." in key and _measured(key) and key not in given}
    several = {*swept(measured), *of_sweep}
    texts = [own[key] if (key := text.split("=")[0]) in several and key in own else text for text in measured]
    texts = sorted(text for text in (*texts, *map(own.__getitem__, of_sweep)) if not text.startswith("seed="))
    axes = [text for text in texts if text.split("=")[0] in several]
    sweep, config = Path("outputs", settings.name), plain(compose("evaluate", [*groups, *changed]))
    name = cell_directory(",".join(["base", *axes]), ",".join(["base", *texts]), sweep, lambda: config)
    subdir = _written(f"{name}/seed={settings.seed}")
    overrides = (*groups, *changed, f"hydra.sweep.dir={sweep}", f"hydra.sweep.subdir={subdir}")
    composed = compose("evaluate", list(overrides), return_hydra_config=True)
    record = plain(composed)
    evaluation = evaluate_settings(record)
    check_evaluate(evaluation, here)
    return Cell("evaluate", overrides, evaluation, _directory(composed), record)


def _measured(key: str) -> bool:
    return key.split(".")[0] in MEASURED and key not in NOT_MEASURED


def _written(value: Any) -> str:
    """A value in Hydra's grammar of overrides."""
    if isinstance(value, str):
        return hydra_quoted(value)
    return json.dumps(value)
