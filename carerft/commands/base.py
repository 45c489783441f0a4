"""Build a base model of the built-in world from a seed (a quarter of an hour on one core), or print where it is.

usage: carerft base [key=value ...]

examples:
  carerft base seed=1                        then: carerft train model=tiny model.base=1
  carerft base seed=1 steps=100 output=here  a shorter pretraining, for trials
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from carerft.commands.arguments import argument, read, refuse
from carerft.config.settings import SEEDS
from carerft.errors import ConfigError


@dataclass
class Base:
    """The keys of `carerft base`."""

    seed: int = argument("of the pretraining; the model of seed 0 comes with carerft", 0, **SEEDS)
    steps: int | None = argument("optimizer steps; null: as many as the model of seed 0", None, least=1)
    output: str | None = argument("directory to write to; null: the cache that model.base=SEED reads", None)
    confidence: bool = argument("a base that states a confidence after each answer, for model.confidence=true", False)


def main() -> None:
    """Pretrain the model unless it is in the cache, and print its directory."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings, words = read(Base, sys.argv[1:], __doc__)
    refuse(settings, words)
    if settings.output is None and settings.steps is not None:
        what = f"steps={settings.steps} without output: the cache holds only models of the default length"
        raise ConfigError(what, "add output=DIRECTORY")
    from carerft.world.bases import base_directory
    from carerft.world.pretraining import STEPS, build_base

    if settings.output is None:
        print(base_directory(settings.seed, settings.confidence))
        return
    output = Path(settings.output)
    build_base(settings.seed, output, STEPS if settings.steps is None else settings.steps, settings.confidence)
    print(output)
