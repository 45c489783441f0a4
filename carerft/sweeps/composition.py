"""Composition by Hydra from `conf/` and `experiments/`: the schemas, experiments and resolvers that it needs."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from carerft.config import choices, settings
from carerft.config.composition import CONF, plain
from carerft.config.identity import config_hash, extends
from carerft.errors import CareError
from carerft.evaluation.answerer import with_answerer
from carerft.runs.directory import locked, manifests
from carerft.runs.inputs import changed_since
from carerft.sweeps import folders, loader
from carerft.sweeps.names import cell_directory, reserved
from carerft.tasks.arithmetic import ArithmeticTask
from carerft.tasks.gsm8k import Gsm8kTask
from carerft.tasks.math import MathTask
from carerft.tasks.questions import QuestionsTask
from carerft.tasks.selfaware import SelfAwareTask
from carerft.tasks.truthfulqa import TruthfulQaTask
from carerft.tasks.world import WorldTask

TASKS = (QuestionsTask, ArithmeticTask, Gsm8kTask, MathTask, SelfAwareTask, TruthfulQaTask, WorldTask)
SCALES = {"tiny": "tiny", "smollm2-135m": "small"}
"""The scale of an experiment, by the choice of its model; of any other model, paper."""
_run_names: dict[str, str] = {}
"""By the hash of a configuration: Hydra resolves the name more than once, and must get the same each time."""


def _run_name(config: dict[str, Any]) -> str:
    """The name of a single run's directory: that of the newest run of the same configuration and inputs that no process
    has and that isn't finished, or was with fewer steps; or the time, of which the directory is then made."""
    parent, identity = Path("outputs", config["name"]), cache(lambda: config_hash(_answered(config)))
    for directory, manifest in manifests(sorted(parent.glob("*"), reverse=True)):
        unfinished = manifest["status"] != "done" and config_hash(manifest["config"]) == identity()
        wanted = unfinished or extends(manifest["config"], config)
        if wanted and not locked(directory) and not changed_since(directory, manifest):
            return directory.name
    if {"-c", "--cfg", "--info", "-i"} & set(sys.argv):  # which show a configuration, and run nothing
        return datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return reserved(parent, datetime.now())


def _answered(config: dict[str, Any]) -> dict[str, Any]:
    """`with_answerer`; as it is where the server can't be asked, which the run itself will say."""
    with suppress(CareError):
        return with_answerer(config)
    return config


def _timestamp(_root_: DictConfig) -> str:
    config = plain(_root_)
    key = f"{config['name']}/{config_hash(config)}"
    if key not in _run_names:
        _run_names[key] = _run_name(config)
    return _run_names[key]


def _cell(_root_: DictConfig) -> str:
    axes = loader.cell_overrides(_root_, loader.axes(_root_))
    return cell_directory(
        axes, loader.cell_overrides(_root_), Path(_root_.hydra.sweep.dir), lambda: _answered(plain(_root_))
    )


@cache
def register() -> None:
    """Register schemas, experiments and resolvers, once in every process that composes a configuration."""
    loader.register()
    settings.register()
    folders.register()
    for task in TASKS:
        settings.register_task(task.__module__.rpartition(".")[2], task)
    OmegaConf.register_new_resolver("carerft.scale", lambda model: SCALES.get(model, "paper"), replace=True)
    for name in ("precision", "quick_precision", "large", "rollout"):
        OmegaConf.register_new_resolver(f"carerft.{name}", getattr(choices, name), replace=True)
    OmegaConf.register_new_resolver("carerft.timestamp", _timestamp, replace=True)
    OmegaConf.register_new_resolver("carerft.cell", _cell, replace=True)
    OmegaConf.register_new_resolver("carerft.basename", lambda path: os.path.basename(path.rstrip("/")), replace=True)


@contextmanager
def composing() -> Iterator[None]:
    """In this context, `hydra.compose` reads `conf/`. An earlier initialization of Hydra's in the process ends."""
    register()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield
