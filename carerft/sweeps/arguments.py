"""What the verbs of experiments, `carerft sweep` and `carerft plan`, are asked on the command line."""

from collections.abc import Sequence
from dataclasses import dataclass

from carerft.errors import ConfigError
from carerft.sweeps.folders import Experiment, experiment


@dataclass(frozen=True)
class Request:
    """experiment: the one that was named. overrides: Hydra's; the model is the miniature where they choose none.
    own: the verb's own settings that were given, by key. jobs: runs side by side, if that was given."""

    experiment: Experiment
    overrides: list[str]
    own: dict[str, str]
    jobs: int | None


def request(verb: str, arguments: Sequence[str], keys: Sequence[str] = (), flags: Sequence[str] = ()) -> Request:
    """The arguments, sorted. keys: of the verb's own settings, beside `jobs`. flags: its options without a value.

    Raises ConfigError: an unknown option, no experiment or several, an unknown one, or jobs that are no number.
    """
    if unknown := [a for a in arguments if a.startswith("-") and a not in flags]:
        raise ConfigError(f"there is no option {unknown[0]}", f"`carerft {verb} --help` lists them")
    names = [a for a in arguments if "=" not in a and a not in flags]
    if len(names) != 1:
        raise ConfigError(f"{len(names)} experiments were named", f"name one, as in: carerft {verb} table1")
    found = experiment(names[0])
    own, overrides = {}, []
    for text in arguments:
        key, equals, value = text.partition("=")
        if key in (*keys, "jobs"):
            own[key] = value
        elif equals:
            overrides.append(text)
    if not any(text.startswith("model=") for text in overrides):
        overrides = ["model=tiny", *overrides]
    jobs = own.pop("jobs", None)
    if jobs is not None and (not jobs.isdecimal() or int(jobs) < 1):
        raise ConfigError(f"jobs={jobs}: must be a number of at least 1", "for example: jobs=2")
    return Request(found, overrides, own, None if jobs is None else int(jobs))
