"""What `carerft train` and `carerft evaluate` share: Hydra composes their configuration, and its record is kept."""

from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from carerft.config.composition import CONF
from carerft.sweeps.composition import register


def application(command: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """A decorator that makes a function of the composed configuration the Hydra application `carerft COMMAND`."""
    register()
    return hydra.main(version_base="1.3", config_path=str(CONF), config_name=command)


def save_composition(directory: Path, config: DictConfig) -> None:
    """Write `.hydra/` into the run's directory: the composed configuration, Hydra's own, and the overrides."""
    record = directory / ".hydra"
    record.mkdir(exist_ok=True)
    hydra_config = HydraConfig.get()
    OmegaConf.save(config, record / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": hydra_config}), record / "hydra.yaml")
    OmegaConf.save(hydra_config.overrides.task, record / "overrides.yaml")
