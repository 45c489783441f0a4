"""Configurations as the command line composes them."""

from typing import Any

import pytest
from hydra import compose

from carerft.config.checks import check_train
from carerft.config.composition import evaluate_settings, plain, train_settings
from carerft.errors import ConfigError
from carerft.sweeps.composition import composing


def composed(*overrides: str, verb: str = "train") -> dict[str, Any]:
    """The plain data of a run's record."""
    with composing():
        return plain(compose(verb, list(overrides)))


def settings(*overrides: str, verb: str = "train") -> Any:
    """The typed settings."""
    return (train_settings if verb == "train" else evaluate_settings)(composed(*overrides, verb=verb))


def refused(overrides: str, names: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_train(settings(*overrides.split()))
    assert names in raised.value.what and remedy in raised.value.remedy
