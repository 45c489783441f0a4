"""What `carerft train` and `carerft evaluate` share: Hydra composes their configuration, and its record is kept."""

import logging
import os
import shlex
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path

import hydra
import hydra._internal.utils
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.text import Text

from carerft.config.composition import CONF
from carerft.errors import CareError, reason
from carerft.sweeps.composition import register
from carerft.terminal import open_console

log = logging.getLogger(__name__)


class _JobError(BaseException):
    """The error of a single run, past Hydra: it would print the run's overrides before every error."""

    def __init__(self, error: Exception):
        self.error = error


def application(command: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """A decorator that makes a function of the composed configuration the Hydra application `carerft COMMAND`.

    It raises what the function raises: of a multirun, after all jobs, the error of the first that failed; each is
    logged where it fails. HYDRA_FULL_ERROR=1 also prints the overrides of a single run.
    """
    register()
    hydra._internal.utils.run_and_report = lambda run: run()  # Hydra's prints errors and ends the process

    def decorate(function: Callable[[DictConfig], None]) -> Callable[[], None]:
        sweep: str | None = None  # the directory of a multirun, once a job of it is finished

        @wraps(function)
        def job(config: DictConfig) -> None:
            nonlocal sweep
            hydra_config = HydraConfig.get()
            try:
                function(config)
                if hydra_config.mode == RunMode.MULTIRUN:
                    sweep = str(hydra_config.sweep.dir)
            except Exception as error:
                if hydra_config.mode == RunMode.MULTIRUN:
                    why = str(error) if isinstance(error, CareError) else reason(error)
                    log.error("failed: %s\n%s", shlex.join(hydra_config.overrides.task), why)
                elif os.environ.get("HYDRA_FULL_ERROR") != "1":
                    raise _JobError(error) from error
                raise

        composed = hydra.main(version_base="1.3", config_path=str(CONF), config_name=command)(job)

        @wraps(function)
        def main() -> None:
            try:
                composed()
            except _JobError as failed:
                raise failed.error from failed.error.__cause__
            finally:
                if sweep is not None:
                    show_next({"compare the runs": ["carerft", "report", sweep]})

        return main

    return decorate


def save_composition(directory: Path, config: DictConfig) -> None:
    """Write `.hydra/` into the run's directory: the composed configuration, Hydra's own, and the overrides."""
    record = directory / ".hydra"
    record.mkdir(exist_ok=True)
    hydra_config = HydraConfig.get()
    OmegaConf.save(config, record / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": hydra_config}), record / "hydra.yaml")
    OmegaConf.save(hydra_config.overrides.task, record / "overrides.yaml")


def show_next(steps: Mapping[str, list[str]]) -> None:
    """Print what can be done next: the words of each command, by its purpose. A command is one line, also where it is
    longer than the terminal is wide."""
    console = open_console()
    for purpose, words in steps.items():
        console.print(Text(f"{purpose}:", "bold"))
        console.print(Text(f"  {shlex.join(words)}"), soft_wrap=True)


def show_uses(directory: Path, others: Mapping[str, list[str]] | None = None) -> None:
    """Print what can be done with this run: its report, and others, as for `show_next`. Of a job of a multirun nothing:
    at the end all are compared."""
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        show_next({"tables, figures and a page": ["carerft", "report", str(directory)], **(others or {})})
