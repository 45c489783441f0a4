"""Makes a function of a composed configuration into a Hydra application."""

from collections.abc import Callable

import hydra
from omegaconf import DictConfig

from carerft.config.composition import config_directory
from carerft.sweeps.composition import register


def application(verb: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """A decorator that makes a function of the composed config the Hydra application `carerft <verb>`."""
    register()
    return hydra.main(version_base="1.3", config_path=str(config_directory()), config_name=verb)
