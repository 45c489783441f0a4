"""Refuses algorithms and regularizers whose settings contradict each other."""

from carerft.config.settings import AlgorithmSettings, RegularizerSettings, SkewRegularizerSettings
from carerft.errors import ConfigError
from carerft.objective.settings import ESTIMATORS


def check_algorithm(settings: AlgorithmSettings) -> None:
    """Raises ConfigError."""
    buffer, penalty = settings.overlong_buffer or 0, settings.overlong_penalty or 0
    if bool(buffer) != bool(penalty):
        raise ConfigError(
            f"algorithm.overlong_buffer={buffer} with algorithm.overlong_penalty={penalty}: one does nothing without "
            "the other",
            "set both (DAPO: 0.2 and 0.5), or both to 0",
        )


def check_regularizer(settings: RegularizerSettings | SkewRegularizerSettings) -> None:
    """Raises ConfigError."""
    estimators = ESTIMATORS.get(settings._target_.rpartition(".")[2], ESTIMATORS["ReverseKL"])
    estimator = settings.estimator
    if estimator not in estimators:
        why = {"k1": "k1 has the wrong gradient; ", "k2": "k2 is defined for a KL(policy || target) alone; "}
        raise ConfigError(
            f"regularizer.estimator={estimator}: {why.get(estimator, '')}must be one of {', '.join(estimators)}",
            f"write regularizer.estimator={estimators[0]}",
        )
    for name in ("beta", "alpha"):
        schedule, end = getattr(settings, f"{name}_schedule", None), getattr(settings, f"{name}_end", None)
        if schedule is not None and (schedule == "constant") != (end is None):
            raise ConfigError(
                f"regularizer.{name}_schedule={schedule} with regularizer.{name}_end={'null' if end is None else end}: "
                f"a schedule needs the value that {name} has at the last step, and a constant has none",
                f"write regularizer.{name}_schedule=linear regularizer.{name}_end=NUMBER, or neither",
            )
