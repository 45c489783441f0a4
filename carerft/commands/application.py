"""What `train` and `evaluate` share as Hydra applications."""

from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from carerft.config.composition import config_directory
from carerft.sweeps.composition import register


def application(verb: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """A decorator that makes a function of the composed config the Hydra application `carerft <verb>`."""
    register()
    return hydra.main(version_base="1.3", config_path=str(config_directory()), config_name=verb)


def save_composition(directory: Path, config: DictConfig) -> None:
    """Hydra's own record of the run: what it composed and from which overrides."""
    record = directory / ".hydra"
    record.mkdir(exist_ok=True)
    hydra = HydraConfig.get()
    OmegaConf.save(config, record / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": hydra}), record / "hydra.yaml")
    OmegaConf.save(hydra.overrides.task, record / "overrides.yaml")
