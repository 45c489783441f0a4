"""Configurations as the command line composes them."""

import pytest
from hydra import compose

from carerft.config.checks import check_train
from carerft.config.composition import plain
from carerft.errors import ConfigError
from carerft.sweeps.composition import composing


def composed(*overrides: str, verb: str = "train") -> dict:
    with composing():
        return plain(compose(verb, list(overrides)))


def refused(overrides: str, names: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_train(composed(*overrides.split()))
    assert names in raised.value.what and remedy in raised.value.remedy
