"""Hydra's loader of configurations, which composes each choice of groups once: the runs of a sweep differ in values.

Reading the files and merging them takes Hydra a tenth of a second, setting values in the result a hundredth.
"""

import copy
import os
from collections.abc import Container, Iterable
from functools import cache
from typing import Any

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobRuntime
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict

from carerft.config.choices import machine

MOST = 64
"""Compositions that are kept, about a megabyte each."""
VALUES = ("hydra.run.", "hydra.sweep.")
"""Keys of Hydra's own that decide nothing while it composes. All others count as choices."""
_composed: dict[tuple[Any, ...], DictConfig] = {}


@cache
def parsed(text: str) -> Override:
    """One override. Raises Hydra's error where its grammar has none of this form."""
    (override,) = OverridesParser.create().parse_overrides([text])
    return override


class Repository(ConfigRepository):
    """Where Hydra looks for files. Here each is read once, and a copy, which Hydra makes for each composition, shares
    all but the list of places, which alone it may change."""

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        self.read: dict[str, ConfigResult | None] = {}
        super().initialize_sources(config_search_path)

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path not in self.read:
            self.read[config_path] = super().load_config(config_path)
        return copy.deepcopy(self.read[config_path])

    def __deepcopy__(self, memo: dict[int, Any]) -> "Repository":
        return copy.copy(self)


class Loader(ConfigLoaderImpl):
    """`ConfigLoaderImpl` that reads each file and composes each choice once, and takes a file's `samples`."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.repository = Repository(config_search_path)

    def _load_configuration_impl(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        given = [parsed(text) for text in overrides]
        if run_mode != RunMode.RUN or any(each.is_sweep_override() for each in given):
            return super()._load_configuration_impl(
                config_name, overrides, run_mode, from_shell, validate_sweep_overrides
            )
        chosen = [each for each in given if self._chooses(each)]
        choices = [str(each.input_line) for each in chosen]
        sources = [(source.provider, source.path) for source in self.get_sources()]
        key = (config_name, *choices, str(sources), machine(), JobRuntime.instance().get("name"))
        if key not in _composed:
            config = super()._load_configuration_impl(config_name, choices, run_mode, from_shell)
            if config.hydra.job.env_copy:  # which is of the moment
                return super()._load_configuration_impl(config_name, overrides, run_mode, from_shell)
            if len(_composed) == MOST:
                del _composed[next(iter(_composed))]
            _composed[key] = config
        config = copy.deepcopy(_composed[key])
        self._apply_overrides_to_config([each for each in given if each not in chosen], config)
        # The record of which overrides a configuration has, and where.
        config.hydra.overrides.hydra = [each.input_line for each in given if each.is_hydra_override()]
        config.hydra.overrides.task = [each.input_line for each in given if not each.is_hydra_override()]
        config.hydra.runtime.cwd = os.getcwd()
        config.hydra.job.override_dirname = cell_overrides(config)
        return config

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        """A file's `samples: {every: 10}` is `keep_samples`: `samples` alone is a number."""
        loaded = super()._load_single_config(default, repo)
        config = loaded.config
        if isinstance(config, DictConfig) and isinstance(given := config.get("samples"), DictConfig):
            with open_dict(config):
                config.merge_with({"keep_samples": given})
                del config["samples"]
        return loaded

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        config = super().load_sweep_config(master_config, sweep_overrides)
        add_axes(config, [*axes(master_config), *swept(written(master_config))])
        return config

    def _chooses(self, override: Override) -> bool:
        """Whether an override decides what is composed, and not only a value in it."""
        key = override.key_or_group
        if override.is_hydra_override():
            return not key.startswith(VALUES)
        return self.repository.group_exists(key) and not isinstance(override.value(), dict)


def written(config: DictConfig) -> list[str]:
    """The overrides of a composed configuration, with interpolations as they were written."""
    return [str(text) for text in OmegaConf.to_container(config.hydra.overrides.task) or ()]


def swept(overrides: Iterable[str]) -> list[str]:
    """The keys to which these overrides give several values."""
    return [each.key_or_group for each in map(parsed, overrides) if each.is_sweep_override()]


def axes(config: DictConfig) -> list[str]:
    """The keys that take several values in the sweep of a composed configuration, as far as it knows."""
    return [str(key).lstrip("+") for key in config.hydra.sweeper.get("params") or {}]


def add_axes(config: DictConfig, keys: Iterable[str]) -> None:
    """Let the configuration of one job know which keys its sweep gives several values, which name its directory."""
    with flag_override(config, ["struct", "readonly"], False):
        config.hydra.sweeper.params = dict.fromkeys([*axes(config), *keys], "")


def cell_overrides(config: DictConfig, keys: Container[str] | None = None) -> str:
    """The overrides of a job that name its cell, as Hydra writes them. keys: of these alone."""
    names = config.hydra.job.config.override_dirname
    own = [each for each in map(parsed, written(config)) if keys is None or each.key_or_group in keys]
    return get_overrides_dirname(own, kv_sep=names.kv_sep, item_sep=names.item_sep, exclude_keys=names.exclude_keys)


def register() -> None:
    """Let Hydra compose with this loader, in this process."""
    hydra._internal.hydra.ConfigLoaderImpl = Loader  # type: ignore[misc]
