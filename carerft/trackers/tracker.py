"""What a tracker is, what it can be shown, and several trackers as one."""

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

log = logging.getLogger(__name__)


class Outcome(Protocol):
    """The result of an evaluation or a report. The names of tables and figures are of the form `group/name`.

    Nothing is computed before a tracker asks for it: a run without trackers draws no figures.
    """

    def numbers(self) -> dict[str, float]: ...

    def tables(self) -> Mapping[str, tuple[list[str], list[list[str | float | bool | None]]]]:
        """By name: the columns' names, and rows that are as long."""
        ...

    def figures(self) -> dict[str, bytes]:
        """PNG images."""
        ...


class Tracker:
    """Takes the metrics of each step, the result of the evaluation, and the end of the run.

    essential: whether a run must stop where its metrics can't be written.
    """

    essential = False

    def log(self, metrics: dict[str, float]) -> None:
        """One step's metrics, flat `group/name` keys and `step`."""
        raise NotImplementedError

    def show(self, outcome: Outcome) -> None:
        """Show the evaluation's result, if at all; at most once, and after the last step."""

    def table(self, name: str, step: int, columns: list[str], rows: list[list[str | float | bool | None]]) -> None:
        """Show a table of the step that comes next, if at all."""

    def finish(self, failed: bool) -> None:
        """The run is over, or stops here. failed: by an error or an interruption."""
        raise NotImplementedError


class Trackers(AbstractContextManager["Trackers"]):
    """Several trackers as one, finished at the end of a `with` block.

    An error of one is logged, and the others go on: no run is lost because it can't be shown. Only an essential
    tracker that can't write a step's metrics stops the run.
    """

    def __init__(self, trackers: Iterable[Tracker]):
        self._trackers = list(trackers)

    def log(self, metrics: dict[str, float]) -> None:
        for tracker in list(self._trackers):
            try:
                tracker.log(metrics)
            except Exception:
                if tracker.essential:
                    raise
                log.exception("%s failed: it gets no more metrics, and the run goes on", type(tracker).__name__)
                self._trackers.remove(tracker)

    def table(self, name: str, step: int, columns: list[str], rows: list[list[str | float | bool | None]]) -> None:
        self._tell(lambda tracker: tracker.table(name, step, columns, rows), f"show {name}")

    def show(self, outcome: Outcome) -> None:
        self._tell(lambda tracker: tracker.show(outcome), "show the evaluation")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._tell(lambda tracker: tracker.finish(failed=kind is not None), "be finished")

    def _tell(self, call: Callable[[Tracker], None], what: str) -> None:
        for tracker in self._trackers:
            try:
                call(tracker)
            except Exception:
                log.exception("%s could not %s", type(tracker).__name__, what)
