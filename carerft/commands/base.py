"""`carerft base`: build a base model of the built-in world from a seed."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from carerft.commands.application import application
from carerft.config.composition import plain
from carerft.errors import ConfigError


@application("base")
def main(config: DictConfig) -> None:
    """Pretrain the tiny model; where it is built already, say where."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = plain(config)
    if settings["seed"] < 0:
        raise ConfigError(f"seed={settings['seed']}: must be at least 0", "give a number of 0 or more")
    from carerft.world.bases import base_directory
    from carerft.world.pretraining import build_base

    if settings["output"] is None and settings["steps"] is None:
        print(base_directory(settings["seed"]))
        return
    if settings["output"] is None:
        what = f"steps={settings['steps']} without output: the cache holds only models of the default length"
        raise ConfigError(what, "add output=DIRECTORY")
    output = Path(settings["output"])
    build_base(settings["seed"], output, **({"steps": settings["steps"]} if settings["steps"] is not None else {}))
    print(output)


if __name__ == "__main__":
    main()
