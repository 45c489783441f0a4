"""The folders of `experiments/`: one for each result, with its sweeps and the paper's numbers and claims.

`experiment=<folder>` chooses a folder's `sweep.yaml`, `experiment=<folder>_<file>` another sweep `<file>.yaml` in it.
`paper.yaml` is not a sweep: `carerft.report.paper` reads it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from carerft.config.composition import data_directory
from carerft.errors import ConfigError
from carerft.text import did_you_mean

PAPER = "paper.yaml"


@dataclass(frozen=True)
class Experiment:
    """One folder. sweeps: the file of each sweep, by the name that `experiment=` takes."""

    name: str
    folder: Path
    sweeps: dict[str, Path]

    @property
    def names_model(self) -> bool:
        """Whether its sweep chooses a model itself, by `override /model` in its defaults."""
        defaults = OmegaConf.select(OmegaConf.load(self.sweeps[self.name]), "defaults") or []
        return any("override /model" in entry for entry in defaults)

    def overrides_of(self, sweep: str, overrides: Sequence[str]) -> list[str]:
        """The overrides for one of its sweeps: without those of other sweeps' axes, which may not exist in this one."""
        other_axes = set().union(*map(axes, self.sweeps.values())) - axes(self.sweeps[sweep])
        return [text for text in overrides if text.split("=")[0] not in other_axes]


def axes(file: Path) -> set[str]:
    """The keys that take several values in a sweep."""
    return set(OmegaConf.select(OmegaConf.load(file), "hydra.sweeper.params") or {})


def experiments() -> dict[str, Experiment]:
    """Every experiment by name."""
    known: dict[str, Experiment] = {}
    for first in sorted(data_directory("experiments").glob("*/sweep.yaml")):
        folder = first.parent
        others = [file for file in sorted(folder.glob("*.yaml")) if file.name not in ("sweep.yaml", PAPER)]
        sweeps = {folder.name: first} | {f"{folder.name}_{file.stem}": file for file in others}
        known[folder.name] = Experiment(folder.name, folder, sweeps)
    return known


def experiment(name: str) -> Experiment:
    """The experiment of this name. Raises ConfigError, with the nearest name, if there is none."""
    known = experiments()
    if name not in known:
        remedy = did_you_mean(name, list(known)) + f"experiments: {', '.join(known)}"
        raise ConfigError(f"there is no experiment {name!r}", remedy)
    return known[name]


def register() -> None:
    """Make every sweep a choice of Hydra's group `experiment`."""
    store = ConfigStore.instance()
    for each in experiments().values():
        for name, file in each.sweeps.items():
            store.store(group="experiment", name=name, node=OmegaConf.load(file), package="_global_")
