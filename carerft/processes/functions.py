"""Functions of a user's own, called in a process of theirs: one that hangs is ended, and one that crashes takes no run
along."""

import pickle
from collections.abc import Sequence
from typing import Any

from carerft.errors import ConfigError, UserCodeError
from carerft.processes import Child

START_SECONDS = 600.0
"""For a file's imports, such as of a reward model."""


class FunctionFault(Exception):
    """A function has given no answer; the message says why. ended: with it, its process was lost."""

    def __init__(self, why: str, ended: bool = False):
        super().__init__(why)
        self.ended = ended


class Metrics:
    """TRL's `log_metric`: remembers numbers by their names."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def __call__(self, name: str, value: float) -> None:
        self.values.setdefault(str(name), []).append(float(value))

    def means(self) -> dict[str, float]:
        return {name: sum(values) / len(values) for name, values in self.values.items()}


def log_extra(column: str, values: Any) -> None:
    """TRL's `log_extra`, whose table of completions is not kept."""


class Shown(str):
    """What a function returned that is no number, as it shows itself."""

    def __repr__(self) -> str:
        return str(self)


class OwnFunctions:
    """Functions, each named as `FILE.py:NAME`. key: of the setting that names them, for errors.

    Their process starts here, and again for the next call after one was lost. Raises ConfigError if a file cannot be
    run, or has no such function.
    """

    def __init__(self, references: Sequence[str], key: str):
        self._references, self._key = list(references), key
        self._child: Child | None = self._started()

    def call(self, number: int, given: dict[str, Any], seconds: float) -> tuple[Any, dict[str, float]]:
        """What a function (by its number) returns, in Python's own numbers and lists, and what it has logged by a
        `Metrics` among its arguments.

        given: its arguments by name, of which it gets a copy of those that it has parameters for. Raises FunctionFault,
        and UserCodeError if it has a parameter of another name.
        """
        child = self._child = self._child or self._started()
        try:
            child.connection.send((number, given))
            kind, *answer = pickle.loads(child.receive(seconds))
        except (TimeoutError, EOFError, OSError) as error:
            raise FunctionFault(self._lost(child, error), ended=True) from error
        except BaseException:  # Ctrl-C among others: an answer to this call must not be taken for the next one's
            self._lost(child)
            raise
        if kind == "unfit":
            raise UserCodeError(*answer)
        if kind == "failed":
            raise FunctionFault(*answer)
        return tuple(answer)

    def _started(self) -> Child:
        child = Child("carerft.processes.function_process", stdout=2)  # their prints stand among messages
        named = f"{self._key}={','.join(self._references)}"
        try:
            child.connection.send((self._references, self._key))
            kind, *answer = pickle.loads(child.receive(START_SECONDS))
        except (TimeoutError, EOFError, OSError) as error:
            why = self._lost(child, error)
            raise ConfigError(f"{named}: {why}, while the file was run", "see its messages above") from error
        if kind == "refused":
            raise ConfigError(*answer)
        return child

    def _lost(self, child: Child, error: Exception | None = None) -> str:
        """End a process that has not answered. Returns what happened."""
        self._child = None
        child.end()
        if isinstance(error, TimeoutError):
            return f"{error}; the process was ended"
        return f"the process that runs it has ended (exit status {child.process.wait()})"
