"""Hydra's composition from `conf/` and `experiments/`: schemas, experiments and resolvers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from carerft.config import settings
from carerft.config.composition import config_directory, plain
from carerft.config.identity import config_hash
from carerft.runs.directory import unfinished_run
from carerft.sweeps import folders


@cache  # Hydra asks several times, and must be told the same
def _run_name(name: str, identity: str) -> str:
    """The name of a single run's directory: that of an unfinished run of this very configuration, or the time."""
    previous = unfinished_run(Path("outputs") / name, identity)
    return previous.name if previous else datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def _timestamp(_root_: DictConfig) -> str:
    config = plain(_root_)
    return _run_name(config["name"], config_hash(config))


def register() -> None:
    """Schemas, experiments and resolvers, as every process that composes a configuration needs them."""
    settings.register()
    folders.register()
    OmegaConf.register_new_resolver("carerft.scale", lambda model: "tiny" if model == "tiny" else "paper", replace=True)
    OmegaConf.register_new_resolver("carerft.timestamp", _timestamp, replace=True)
    OmegaConf.register_new_resolver("carerft.basename", lambda path: os.path.basename(path.rstrip("/")), replace=True)


@contextmanager
def composing() -> Iterator[None]:
    """Inside it, `hydra.compose` composes from `conf/`, whatever Hydra was at before."""
    register()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        yield
