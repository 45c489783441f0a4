"""Refuses values of one key: what most checks of a configuration consist of.

An algorithm or a regularizer of a user's own need not have every key of ours: what is absent or null is not checked.
"""

from collections.abc import Sequence
from typing import Any

from carerft.config.identity import flatten
from carerft.errors import ConfigError


def one_of(config: dict[str, Any], key: str, allowed: Sequence[str], why: str = "") -> None:
    """Raises ConfigError for a value that is not among the allowed. why: said before them."""
    value = flatten(config).get(key)
    if value is not None and value not in allowed:
        raise ConfigError(f"{key}={value}: {why}must be one of {', '.join(allowed)}", f"write {key}={allowed[0]}")


def at_least(config: dict[str, Any], key: str, least: float) -> None:
    """Raises ConfigError for a number below the least, or NaN."""
    value = flatten(config).get(key)
    if value is not None and not value >= least:
        raise ConfigError(f"{key}={value}: must be at least {least}", f"give a number of {least} or more")


def above_0(config: dict[str, Any], key: str, remedy: str) -> None:
    """Raises ConfigError for a number that is 0, negative or NaN."""
    value = flatten(config).get(key)
    if value is not None and not value > 0:
        raise ConfigError(f"{key}={value}: must be above 0", remedy)


def between(config: dict[str, Any], key: str, low: float, high: float) -> None:
    """Raises ConfigError for a number that is not strictly between the two, or NaN."""
    value = flatten(config).get(key)
    if value is not None and not low < value < high:
        raise ConfigError(f"{key}={value}: must lie between {low} and {high}", "see the comments in conf/")
