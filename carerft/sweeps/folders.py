"""The folders of `experiments/`: one per result, with its sweeps and with what the paper says of it.

A folder's `sweep.yaml` is chosen by `experiment=<folder>`, a further sweep `<file>.yaml` by
`experiment=<folder>_<file>`; `paper.yaml` is no sweep: see `carerft.report.paper`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

import carerft
from carerft.errors import ConfigError
from carerft.text import did_you_mean

PAPER = "paper.yaml"


@dataclass(frozen=True)
class Experiment:
    """One folder: its name, and the sweeps that it consists of by the name that `experiment=` knows them by."""

    name: str
    folder: Path
    sweeps: dict[str, Path]

    def overrides_of(self, sweep: str, overrides: Sequence[str]) -> list[str]:
        """What of these overrides concerns one of its sweeps: an axis of another one may not exist there."""
        elsewhere = set().union(*(axes(file) for file in self.sweeps.values())) - axes(self.sweeps[sweep])
        return [text for text in overrides if text.split("=")[0] not in elsewhere]


def axes(file: Path) -> set[str]:
    """The keys that a sweep goes through."""
    return set(OmegaConf.select(OmegaConf.load(file), "hydra.sweeper.params") or {})


def experiments_directory() -> Path:
    """`experiments/`: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(carerft.__file__).parent
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def experiments() -> dict[str, Experiment]:
    """Every experiment by name."""
    found = {}
    for main in sorted(experiments_directory().glob("*/sweep.yaml")):
        folder = main.parent
        others = [file for file in sorted(folder.glob("*.yaml")) if file.name not in (main.name, PAPER)]
        sweeps = {folder.name: main} | {f"{folder.name}_{file.stem}": file for file in others}
        found[folder.name] = Experiment(folder.name, folder, sweeps)
    return found


def experiment(name: str) -> Experiment:
    """Raises ConfigError where there is no such experiment."""
    known = experiments()
    if name not in known:
        remedy = did_you_mean(name, list(known)) + f"experiments: {', '.join(known)}"
        raise ConfigError(f"there is no experiment {name!r}", remedy)
    return known[name]


def register() -> None:
    """Make every sweep a choice of Hydra's group `experiment`."""
    store = ConfigStore.instance()
    for found in experiments().values():
        for name, file in found.sweeps.items():
            store.store(group="experiment", name=name, node=OmegaConf.load(file), package="_global_")
