"""What is wrong with a configuration that Hydra refuses, and what to write instead."""

import re
from collections.abc import Sequence
from typing import Any

from hydra.errors import MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from carerft.config.identity import flatten
from carerft.config.settings import defaults
from carerft.text import did_you_mean

OWN = {
    "model": "a directory: model=./DIRECTORY; of the hub: model=ORGANISATION/NAME",
    "task": "questions of your own: task=questions task.path=FILE task.question=COLUMN task.answer=COLUMN "
    "task.grader=number",
    "benchmark": "questions of your own: benchmark=questions benchmark.questions.path=FILE "
    "benchmark.questions.question=COLUMN benchmark.questions.answer=COLUMN benchmark.questions.grader=number",
    "reward": "a function of your own: reward=FILE.py:FUNCTION",
}
"""Of a group: how one's own is written where a choice is unknown."""
NAMES = {
    "lr": "learner.learning_rate",
    "learning_rate": "learner.learning_rate",
    "kl_coef": "regularizer.beta",
    "num_generations": "algorithm.group_size",
    "batch_size": "rollout.prompts_per_batch",
    "per_device_train_batch_size": "rollout.prompts_per_batch",
    "max_completion_length": "rollout.max_tokens",
    "max_new_tokens": "rollout.max_tokens",
    "max_steps": "steps",
    "output_dir": "hydra.run.dir",
}
"""What other frameworks call a key of ours."""
METHODS = {"ppo": "grpo", "reinforce": "rloo", "kl": "rkl"}
"""Of a method that is none of ours: the nearest."""
KINDS = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}
OWN_KEY = re.compile(r"In '(\w+/[^']+)':.*?Key '(\w+)' not in '\w+Settings'", re.DOTALL)
WRONG_TYPE = re.compile(
    r"Error merging override (\S+?)=.*?(?:could not be converted to|is not a valid) (\w+)", re.DOTALL
)
NO_LIST = re.compile(r"Error merging override ((\S+?)=(.*))\n.*is not a ListConfig")
TECHNICAL = re.compile(r"$|object_type=|reference_type=|full_key: |To append to your config")


def explain(error: Exception, listing: str) -> tuple[str, str]:
    """What is wrong, from Hydra's error, and the remedy: the nearest key or choice. listing: what lists the keys."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_choice(*error.missing_cfg_file.rpartition("/")[::2], options=error.options or [])
    errors = [each for each in (error, error.__cause__) if each is not None]
    for each in errors:
        if isinstance(each, ConfigAttributeError | ConfigKeyError) and each.parent_node is not None:
            config: Any = OmegaConf.to_container(each.parent_node._get_root(), resolve=False)
            return _unknown_key(str(each.full_key), config, listing)
    text = "\n".join(map(str, errors))
    if own := OWN_KEY.search(text):
        return (
            f"{own[1]}: the key {own[2]!r} is not among those of the schema that the file takes",
            "a class of your own with parameters of its own takes no schema: leave `defaults` out of the file and list "
            "all of its keys (docs/method.md, Adding your own)",
        )
    if (wrong := WRONG_TYPE.search(text)) and wrong[2] in KINDS:
        key, usual = wrong[1].lstrip("+"), defaults().get(wrong[1].lstrip("+"))
        example = f", such as {key}={str(usual).lower()}" if usual is not None else ""
        word = text.partition("Error merging override ")[2].splitlines()[0]
        return f"{word}: this is not {KINDS[wrong[2]]}", f"write {KINDS[wrong[2]]}{example}"
    if no_list := NO_LIST.search(text):
        word, key, value = no_list.groups()
        return f"{word}: this is no list", f"write {key}=[{value}]"
    lines = (line.strip() for line in text.splitlines())
    text = "\n  ".join(dict.fromkeys(line for line in lines if not TECHNICAL.match(line)))
    key = getattr(error, "full_key", None)
    return f"{key}: {text}" if key else text, listing


def _unknown_choice(group: str, choice: str, options: Sequence[str]) -> tuple[str, str]:
    if group == "hydra/launcher":
        plugin = f"hydra-{choice.partition('_')[0]}-launcher"
        return f"{group}={choice}: Hydra has no such choice here", f"it may need a plugin: pip install {plugin}"
    choices = [option for option in options if option != "path"]  # of a model, which another word has to give
    near = f"did you mean {METHODS[choice]}? " if METHODS.get(choice) in choices else did_you_mean(choice, choices)
    own = f"\n  {OWN[group]}" if group in OWN else ""
    return f"{group}={choice}: there is no such {group}", f"{near}choices: {', '.join(choices)}{own}"


def _unknown_key(key: str, config: dict[str, Any], listing: str) -> tuple[str, str]:
    """config: which lacks the key."""
    what, (group, _, own) = f"there is no key {key!r}", key.partition(".")
    if group == "task" and "task" not in config:
        return what, f"a model is measured on benchmarks\n  {OWN['benchmark']}"
    if group == "keep_samples" and group not in config:
        return "there is no key 'samples.every'", "it is of `carerft train`; an evaluation keeps all that it samples"
    if group == "data":
        return what, f"a task and a benchmark have files of their own; {OWN['task']}\n  {OWN['benchmark']}"
    if group == "task" and own in ("path", "dataset", "question", "answer", "grader"):
        known = f"task={config['task']['name']}"
        return (
            f"{what}: {known} has none",
            f"{OWN['task']}\n  of known columns: task=gsm8k or task=math, with task.path=FILE",
        )
    if group == "benchmark" and (name := own.partition(".")[0]) not in config["benchmark"]:
        chosen = ", ".join(config["benchmark"]) or "none"
        return (
            what,
            f"the benchmarks are {chosen}; write benchmark={name} as well, if there is one\n  {OWN['benchmark']}",
        )
    keys = [*flatten(config), *config]
    if group != "hydra":
        keys = [each for each in keys if not each.startswith("hydra.") or each in NAMES.values()]
    usual = NAMES.get(key.rpartition(".")[2])
    if "task" not in config:
        first = next(iter(config.get("benchmark") or ()), "NAME")
        own_keys = {"prompts_per_batch": "rollout.batch_size", "max_tokens": f"benchmark.{first}.max_tokens"}
        usual = own_keys.get((usual or "").removeprefix("rollout."), usual)
    siblings = [each for each in keys if own and each.startswith(f"{group}.")]
    near = f"write {usual}=...; " if usual in keys else did_you_mean(key, siblings) or did_you_mean(key, keys)
    return what, near + listing
