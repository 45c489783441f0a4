"""Makes a function of a config into a Hydra application: where the YAML files are, and the resolvers they use."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

import carerft
from carerft.config import schema
from carerft.config.identity import config_hash
from carerft.experiment import folders
from carerft.run_directory import unfinished_run


def config_directory() -> Path:
    """`conf/`: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(carerft.__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


@cache  # Hydra asks several times, and must be told the same
def _run_name(name: str, identity: str) -> str:
    """The name of a single run's directory: that of an unfinished run of this very configuration, or the time."""
    previous = unfinished_run(Path("outputs") / name, identity)
    return previous.name if previous else datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def _timestamp(_root_: DictConfig) -> str:
    config = plain(_root_)
    return _run_name(config["name"], config_hash(config))


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed configuration without Hydra's own part, every interpolation resolved.

    Raises omegaconf.errors.OmegaConfBaseException where a value is missing or an interpolation leads nowhere.
    """
    own = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    return OmegaConf.to_container(own, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def register() -> None:
    """Schemas, experiments and resolvers, as every process that composes a configuration needs them."""
    schema.register()
    folders.register()
    OmegaConf.register_new_resolver("carerft.timestamp", _timestamp, replace=True)
    OmegaConf.register_new_resolver("carerft.basename", lambda path: os.path.basename(path.rstrip("/")), replace=True)


@contextmanager
def composing() -> Iterator[None]:
    """Inside it, `hydra.compose` composes from `conf/`, whatever Hydra was at before."""
    register()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        yield


def application(verb: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """A decorator that makes a function of the composed config the Hydra application `carerft <verb>`."""
    register()
    return hydra.main(version_base="1.3", config_path=str(config_directory()), config_name=verb)
