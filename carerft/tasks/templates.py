"""Prompt templates: one YAML file each, `prompts/<dataset>/<name>.yaml` beside this file, or a file of the user's own.

Its keys:
  prompt    the text given to the model, with {question} where the question goes
  until     a reply ends where the model writes this; null: at the reply's end
  confidence   true: the prompt asks for a confidence after the answer (`carerft.tasks.confidence`), which is then not
            graded with it
  example, examples   MATH only: the form of an example, with {question}, {solution} and {answer}, and the rows of the
            train split that replace {examples} of the prompt, each in this form

Only these names are special: other braces stay, as in \\boxed{}.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from carerft.config.settings import TaskSettings
from carerft.errors import ConfigError

AUTO = "auto"
PROMPTS = Path(__file__).parent / "prompts"
REMEDY = 'write a YAML file such as: prompt: "Q: {question}\\nA:"'


@dataclass(frozen=True)
class Template:
    """A template file's keys, as described above. examples: fingerprints of rows of MATH's train split."""

    prompt: str
    until: str | None = None
    confidence: bool = False
    example: str | None = None
    examples: tuple[str, ...] = ()


def load_template(dataset: str, name: str) -> Template:
    """dataset: a folder of PROMPTS. name: a file in it, without its ending, or the path of a file (ending in .yaml).

    Raises ConfigError, which lists the choices.
    """
    file = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else PROMPTS / dataset / f"{name}.yaml"
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        str(values.get("prompt") if isinstance(values, dict) else "").encode()  # no half of a surrogate pair
    except OSError as error:
        choices = ", ".join(sorted(path.stem for path in (PROMPTS / dataset).glob("*.yaml")))
        raise ConfigError(
            f"prompt={name!r} is no prompt of {dataset} ({file}: {error.strerror})",
            f"write one of {choices}, or {REMEDY.removeprefix('write ')}",
        ) from error
    except (UnicodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: {' '.join(str(error).split())}", REMEDY) from error
    if not isinstance(values, dict) or "{question}" not in str(values.get("prompt")):
        raise ConfigError(f"{file} has no key 'prompt' with {{question}} in it", REMEDY)
    keys = [field.name for field in fields(Template)]
    if unknown := sorted(map(str, values.keys() - set(keys))):
        raise ConfigError(f"{file}: there is no key {unknown[0]!r}", f"its keys may be {', '.join(keys)}")
    if not all(isinstance(values.get(key), str | None) for key in ("prompt", "until", "example")):
        raise ConfigError(f"{file}: 'prompt', 'until' and 'example' are texts", REMEDY)
    if not isinstance(values.get("confidence", False), bool):
        raise ConfigError(f"{file}: 'confidence' is true or false", "write confidence: true, or leave it out")
    return Template(**{**values, "examples": tuple(map(str, values.get("examples") or ()))})


def check_templates(tasks: Iterable[TaskSettings]) -> None:
    """Load the prompts of this package's tasks. Raises ConfigError for one that cannot be loaded."""
    for settings in tasks:
        package, _, module = settings._target_.rpartition(".")[0].rpartition(".")
        prompt = getattr(settings, "prompt", None)
        if package == "carerft.tasks" and prompt not in (None, AUTO):
            load_template(module, prompt)


def fill(text: str, **values: str) -> str:
    """The text with {name} replaced by its value, for each given value; names in a value are not replaced."""
    return re.sub(rf"\{{({'|'.join(values)})\}}", lambda match: values[match[1]], text)
