"""Where the YAML files are, and a composed configuration as plain data."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import carerft


def config_directory() -> Path:
    """`conf/`: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(carerft.__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed configuration without Hydra's own part, every interpolation resolved.

    Raises omegaconf.errors.OmegaConfBaseException where a value is missing or an interpolation leads nowhere.
    """
    own = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    return OmegaConf.to_container(own, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
