"""One grammar for every command that composes no configuration: words `key=value`, read into a dataclass.

`train` and `evaluate` are not read here: Hydra composes their configuration from `conf/`.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import field, fields
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from carerft.config.composition import CONF
from carerft.config.constraints import check_constraints
from carerft.errors import ConfigError
from carerft.text import did_you_mean

T = TypeVar("T")


def argument(text: str, default: Any = MISSING, **constraint: Any) -> Any:
    """A field of a command's dataclass; without a default, its key must be given.

    text: what `--help` prints beside it. constraint: as of `carerft.config.constraints`.
    """
    return field(default_factory=lambda: default, metadata={"help": text, **constraint})


def read(kind: type[T], words: Sequence[str], about: str | None) -> tuple[T, list[str]]:
    """Read a command's words into its dataclass. Also returns the words that set no key, in their order.

    OmegaConf converts a text to its field's type; `null` is None, and a list is `a,b` or `[a,b]`. A dotted key sets an
    entry of a dict (`columns.gsm8k=[ece]`) or a field of a dataclass (`tracker.mode=online`); `tracker=wandb` takes the
    values in `conf/tracker/wandb.yaml`. `--dry-run` is short for `dry_run=true`; `--help` prints `about` and every key.
    Raises ConfigError for an unknown option, a missing key or a value outside its constraint, and OmegaConf's errors
    for an unknown dotted key or a value of another type.
    """
    config = OmegaConf.structured(kind)
    names = [str(key) for key in config]
    if {"-h", "--help"} & set(words):
        keys = "\n".join(_help(kind, config))
        print(f"{(about or '').strip()}\n" + (f"\nkeys, with their defaults:\n{keys}" if keys else ""))
        sys.exit(0)
    if "-sc" in words:  # the shell asks for completions
        print("\n".join(f"{key}=" for key in names))
        sys.exit(0)
    options = {"--" + name.replace("_", "-"): name for name in names if isinstance(config.get(name), bool)}
    texts, others = {}, []
    for word in words:
        if word.startswith("-") and word not in options:
            raise ConfigError(f"there is no option {word}", "--help lists every option")
        key, equals, text = (options[word], "=", "true") if word in options else word.partition("=")
        if equals and key.split(".")[0] in names:
            texts[key] = text
        else:
            others.append(word)
    for key in sorted(texts, key=lambda key: "." in key):  # tracker=wandb comes before tracker.mode=online
        _set(config, key, texts[key])
    if missing := sorted(OmegaConf.missing_keys(config)):
        refuse(kind, others)  # a misspelt key may be the missing one
        raise ConfigError(f"{missing[0]}= is missing", "--help describes every key")
    settings: Any = OmegaConf.to_object(config)
    check_constraints(settings)
    return settings, others


def refuse(kind: Any, words: Sequence[str]) -> None:
    """Raises ConfigError if there is a word that sets no key of the dataclass. kind: the class, or an instance."""
    for word in words:
        key, equals, _ = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r} is not of the form key=value", "--help lists every key")
        keys = [entry.name for entry in fields(kind)]
        raise ConfigError(f"there is no key {key!r}", did_you_mean(key, keys) + f"keys: {', '.join(keys)}")


def _set(config: DictConfig, key: str, text: str) -> None:
    """Set one key from its text, which is taken for a list if the field cannot be set to a text."""
    value: Any = None if text == "null" else text
    choices = _choices(config, key)
    if choices:
        if text not in choices:
            raise ConfigError(f"{key}={text}: must be one of {', '.join(choices)}", f"write {key}={choices[0]}")
        value = OmegaConf.load(CONF / key / f"{text}.yaml")
    try:
        OmegaConf.update(config, key, value)
    except ValidationError as error:
        parts = [part.strip(" \"'") for part in text.removeprefix("[").removesuffix("]").split(",")]
        try:
            OmegaConf.update(config, key, [part for part in parts if part])
        except OmegaConfBaseException:
            raise error from None


def _choices(config: DictConfig, key: str) -> list[str]:
    """The files of `conf/KEY/` that give the values of a dataclass; empty for any other field."""
    files = (CONF / key).glob("*.yaml") if OmegaConf.is_dict(OmegaConf.select(config, key)) else ()
    return sorted(file.stem for file in files)


def _help(kind: type, config: DictConfig) -> Iterator[str]:
    """A line for each key: its default or its choices, and what it means; then the entries of a dict."""
    for entry in fields(kind):
        name = entry.name
        value = "..." if OmegaConf.is_missing(config, name) else config[name]
        entries = value.items() if isinstance(value, DictConfig) else ()
        if choices := _choices(config, name):
            key, entries = f"{name}={'|'.join(choices)}", ()
        elif isinstance(value, bool):
            key = "--" + name.replace("_", "-")
        else:
            key = f"{name}.NAME=[...]" if entries else f"{name}={'null' if value is None else value}"
        yield f"  {key:<24} {entry.metadata['help']}"
        yield from (f"  {name}.{inner}=[{','.join(texts)}]" for inner, texts in entries)
