"""One grammar for every command that composes no configuration: words `key=value`, read into a dataclass.

`train` and `evaluate` are not read here: Hydra composes their configuration from `conf/`.
"""

import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import field, fields, is_dataclass
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf

from carerft.config.composition import config_directory
from carerft.errors import ConfigError
from carerft.text import did_you_mean

T = TypeVar("T")
WORDS = {int: "a whole number", float: "a number", bool: "true or false"}


def argument(text: str, default: Any = MISSING) -> Any:
    """A field of a command's dataclass. text: what `--help` prints beside it. Without a default, it must be given."""
    return field(default_factory=lambda: copy.copy(default), metadata={"help": text})


def read(kind: type[T], words: Sequence[str], about: str | None) -> tuple[T, list[str]]:
    """Read a command's words into its dataclass. Also returns the words that set no key, in their order.

    A text is converted to its field's type: str, int, float, bool, or one of them or None, written `null`; a list is
    `a,b` or `[a,b]`. A dotted key sets an entry of a dict of lists, as in `columns.gsm8k=[ece]`, or a field of a
    dataclass, as in `tracker.mode=online`; `tracker=wandb` takes all its fields from `conf/tracker/wandb.yaml`.
    `--dry-run` is short for `dry_run=true`. `--help` prints `about` and every key.
    Raises ConfigError: an unknown option, an unknown dotted key, or a value that is not of the field's type.
    """
    settings = kind()
    if {"-h", "--help"} & set(words):
        print(f"{(about or '').strip()}\n\nkeys, with their defaults:\n" + "\n".join(_help(settings)))
        sys.exit(0)
    if "-sc" in words:  # the shell asks for completions
        print("\n".join(f"{key}=" for key in vars(settings)))
        sys.exit(0)
    texts: dict[str, str] = {}
    others = []
    for word in words:
        key, equals, text = word.partition("=")
        if word.startswith("-"):
            key, equals, text = word.removeprefix("--").replace("-", "_"), "=", "true"
            if not isinstance(vars(settings).get(key), bool):
                raise ConfigError(f"there is no option {word}", "--help lists every option")
        if equals and key.split(".")[0] in vars(settings):
            texts[key] = text
        else:
            others.append(word)
    for key in sorted(texts, key=lambda key: key.count(".")):  # tracker=wandb before tracker.mode=online
        _set(settings, key, texts[key], key)
    return settings, others


def refuse(settings: Any, words: Sequence[str]) -> None:
    """Raises ConfigError if there is a word that sets no key of the dataclass, or a key that must be given was not."""
    for word in words:
        if "=" not in word:
            raise ConfigError(f"{word!r} is not of the form key=value", "--help lists every key")
        raise _unknown(word.partition("=")[0], list(vars(settings)))
    for entry in fields(settings):
        if getattr(settings, entry.name) == MISSING:
            raise ConfigError(f"{entry.name}= is missing", f"{entry.name}: {entry.metadata['help']}")


def _unknown(key: str, known: Sequence[str]) -> ConfigError:
    return ConfigError(f"there is no key {key!r}", did_you_mean(key, known) + f"keys: {', '.join(known)}")


def _set(settings: Any, name: str, text: str, key: str) -> None:
    """Set the field or entry `name`, which may be dotted, from its text. key: the key as written, for errors."""
    if isinstance(settings, dict):
        settings[name] = _parse(list[str], text, key)
        return
    name, dot, inner = name.partition(".")
    value = vars(settings).get(name)
    if name not in vars(settings) or (dot and not (is_dataclass(value) or isinstance(value, dict))):
        prefix = key.removesuffix(name + dot + inner)
        raise _unknown(key, [prefix + other for other in vars(settings)])
    if dot:
        _set(value, inner, text, key)
    elif is_dataclass(value):
        file = config_directory() / name / f"{text}.yaml"
        if file.stem not in _choices(name):
            raise ConfigError(f"{key}={text}: must be one of {', '.join(_choices(name))}", f"write {key}=none")
        setattr(settings, name, type(value)(**OmegaConf.load(file)))  # type: ignore[operator, arg-type]
    else:
        setattr(settings, name, _parse(get_type_hints(type(settings))[name], text, key))


def _choices(group: str) -> list[str]:
    return sorted(file.stem for file in (config_directory() / group).glob("*.yaml"))


def _parse(kind: Any, text: str, key: str) -> Any:
    """Raises ConfigError if the text is no value of this type."""
    if NoneType in get_args(kind):
        return None if text == "null" else _parse(get_args(kind)[0], text, key)
    if get_origin(kind) is list:
        parts = [part.strip(" \"'") for part in text.removeprefix("[").removesuffix("]").split(",")]
        return [part for part in parts if part]
    try:
        return {"true": True, "false": False}[text] if kind is bool else kind(text)
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"{key}={text}: must be {WORDS.get(kind, 'set by its entries')}", "--help describes it"
        ) from error


def _help(settings: Any) -> Iterator[str]:
    """A line for each key: its default or its choices, and what it means."""
    for entry in fields(settings):
        value = getattr(settings, entry.name)
        key, defaults = f"{entry.name}={'null' if value is None else '...' if value == MISSING else value}", []
        if isinstance(value, bool):
            key = "--" + entry.name.replace("_", "-")
        elif is_dataclass(value):
            key = f"{entry.name}={'|'.join(_choices(entry.name))}"
        elif isinstance(value, dict):
            key = f"{entry.name}.NAME=[...]"
            defaults = [f"  {entry.name}.{name}=[{','.join(texts)}]" for name, texts in value.items()]
        yield from (f"  {key:<24} {entry.metadata['help']}", *defaults)
