"""Refuses values of single settings, by the constraint that each setting's field declares in its metadata.

choices: the values that are allowed. least, most: bounds that are allowed themselves; above, below: bounds that are
not. why: said in the place of the bound. remedy: what to write instead, where there is something better to say than
the bound again. null is not checked, and NaN is within no bound.
"""

import operator
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from carerft.errors import ConfigError

BOUNDS = {
    "least": ("at least", operator.ge),
    "most": ("at most", operator.le),
    "above": ("above", operator.gt),
    "below": ("below", operator.lt),
}


def check_constraints(settings: Any, prefix: str = "") -> None:
    """Raises ConfigError for the first setting, groups included, whose value its field's metadata doesn't allow.

    settings: a dataclass of `carerft.config.settings`. prefix: the dotted key of the group that it is.
    """
    for entry in fields(settings):
        value, key = getattr(settings, entry.name), prefix + entry.name
        if is_dataclass(value):
            check_constraints(value, f"{key}.")
        elif value is not None and entry.metadata:
            _check(key, value, entry.metadata)


def _check(key: str, value: Any, constraint: Mapping[str, Any]) -> None:
    choices = constraint.get("choices")
    if choices is not None:
        if value not in choices:
            raise ConfigError(
                f"{key}={value}: {constraint.get('why') or 'must be one of ' + ', '.join(map(str, choices))}",
                constraint.get("remedy", f"write {key}={choices[0]}"),
            )
        return
    bounds = {name: bound for name, bound in constraint.items() if name in BOUNDS}
    if all(BOUNDS[name][1](value, bound) for name, bound in bounds.items()):
        return
    phrase = " and ".join(f"{BOUNDS[name][0]} {bound}" for name, bound in bounds.items())
    must, give = f"must be {phrase}", f"give a number {phrase}"
    if bounds.keys() == {"above", "below"}:
        phrase = f"between {bounds['above']} and {bounds['below']}"
        must, give = f"must lie {phrase}", f"give a number {phrase}"
    elif bounds.keys() == {"least"}:
        give = f"give a number of {bounds['least']} or more"
    raise ConfigError(f"{key}={value}: {constraint.get('why', must)}", constraint.get("remedy", give))
