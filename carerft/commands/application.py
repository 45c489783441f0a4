"""What `carerft train` and `carerft evaluate` share: Hydra composes their configuration, and its record is kept."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.text import Text

from carerft.config.composition import CONF
from carerft.sweeps.composition import register
from carerft.terminal import open_console


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


def show_next(steps: Mapping[str, list[str]]) -> None:
    """Print what can be done next: the words of each command, by its purpose. A command is one line, also where it is
    longer than the terminal is wide."""
    console = open_console()
    for purpose, words in steps.items():
        console.print(Text(f"{purpose}:", "bold"))
        console.print(Text(f"  {shlex.join(words)}"), soft_wrap=True)


def compared(directory: Path) -> dict[str, list[str]]:
    """The command that compares the runs of a multirun, or reports on this run."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        return {"compare the runs": ["carerft", "report", str(hydra.sweep.dir)]}
    return {"tables, figures and a page": ["carerft", "report", str(directory)]}
