"""The folders of `experiments/`: one for each result, with its sweeps and the paper's numbers and claims.

`experiment=<folder>` chooses a folder's `sweep.yaml`, `experiment=<folder>_<file>` another sweep `<file>.yaml` in it.
`paper.yaml` is not a sweep: `carerft.report.paper` reads it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from carerft.config.composition import data_directory
from carerft.errors import ConfigError
from carerft.sweeps.loader import parsed
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

    def overridden(self, overrides: Sequence[str]) -> dict[str, list[str]]:
        """The sweeps that these overrides leave, and the overrides of each.

        An axis that only other sweeps have is left out, as it may not exist in this one. A value of an axis chooses the
        sweeps that list it, or, if none does, those in which the axis has several values: `regularizer=rkl` of a sweep
        over penalties is not asked of another whose one penalty is `none`. Raises ConfigError if no sweep is left, and
        Hydra's error for an override that its grammar does not have.
        """
        listed = {sweep: axes(file) for sweep, file in self.sweeps.items()}
        left: dict[str, list[str]] = {sweep: [] for sweep in self.sweeps}
        for text in overrides:
            override = parsed(text)
            key = override.key_or_group
            having = {sweep: values[key] for sweep, values in listed.items() if key in values}
            if not having:
                for words in left.values():
                    words.append(text)
            for sweep, values in _chosen(having, override).items():
                if not values:
                    left.pop(sweep, None)
                elif sweep in left:
                    left[sweep].append(text.split("=")[0] + "=" + ",".join(values))
        if not left:
            raise ConfigError(
                f"no sweep of experiment {self.name} has all of {' '.join(overrides)}",
                f"each has a file in {self.folder}; another combination is a multirun of your own: "
                f"carerft train -m experiment={list(self.sweeps)[-1]} {' '.join(overrides)}",
            )
        return left


def _chosen(having: Mapping[str, list[str]], override: Override) -> dict[str, list[str]]:
    """Which of an override's values each sweep takes. having: the values of this axis, by the sweeps that have it."""
    values = (
        list(override.sweep_string_iterator())
        if override.is_sweep_override()
        else [override.get_value_element_as_str()]
    )
    listed = set().union(*having.values())
    several = [sweep for sweep, own in having.items() if len(own) > 1] or list(having)
    return {
        sweep: [value for value in values if value in own or (value not in listed and sweep in several)]
        for sweep, own in having.items()
    }


def axes(file: Path) -> dict[str, list[str]]:
    """The axes of a sweep, and the values of each as its file has them."""
    params = OmegaConf.select(OmegaConf.load(file), "hydra.sweeper.params") or {}
    return {key: str(values).split(",") for key, values in params.items()}


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
