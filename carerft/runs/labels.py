"""Names of runs by their configurations: the penalty with its settings and a reward of this package other than
correctness, or the model that was evaluated."""

from collections.abc import Mapping
from typing import Any

from carerft.config.functions import is_reference
from carerft.text import line, number

Config = Mapping[str, Any]


def section(config: Config, name: str) -> Config:
    """A group of a resolved configuration; {"name": value} where an old one holds only the group's name."""
    content = config.get(name)
    return content if isinstance(content, dict) else {} if content is None else {"name": content}


def algorithm_name(config: Config) -> str:
    return line(section(config, "algorithm").get("name", "?"), 30).upper()


def family(command: str, config: Config) -> str:
    """The regularizer's name, which decides a run's colour and order; "base" for a model evaluated without training."""
    name = section(config, "regularizer").get("name", "none")
    return line(name, 30).lower() if command == "train" else "base"


def family_title(family: str) -> str:
    """The penalty as tables write it."""
    return {"none": "no penalty", "forward_kl": "FORWARD KL"}.get(family, family.upper())


def run_label(command: str, config: Config) -> str:
    """ "SRKL alpha=0.8 beta=0.04", "no penalty, ternary"; for a model evaluated without training, "NAME, as it is"."""
    kind = family(command, config)
    if kind == "base":
        return f"{line(section(config, 'model').get('name', '?'), 60)}, as it is"
    regularizer = section(config, "regularizer")
    bonus = number(regularizer.get("entropy_bonus"))
    entropy = [f"entropy bonus={bonus:g}"] if bonus else []
    functions = section(config, "reward").get("functions") or ()
    rewards = [line(name, 30) for name in functions if name != "correctness" and not is_reference(str(name))]
    if kind in ("none", "entropy"):
        return ", ".join([*(entropy or ["no penalty"]), *rewards])
    strengths = [(key, number(regularizer.get(key))) for key in ("alpha", "beta")]
    words = [family_title(kind), *(f"{key}={value:g}" for key, value in strengths if value is not None)]
    words += ["matched"] if regularizer.get("match") == "local" else []
    return ", ".join([" ".join(words), *entropy, *rewards])
