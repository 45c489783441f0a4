"""Ctrl-C, and the signal by which a cluster announces the end of a job: finish the step, save, and stop."""

import logging
import signal
from types import FrameType

log = logging.getLogger(__name__)


class Interruption:
    """A context in which the first SIGINT or SIGTERM requests a stop and a second one stops at once.

    Calling it returns whether a stop was requested. Outside the main thread, where Python allows no signal handlers,
    signals keep their usual effect.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._requested = False
        self._previous: dict[signal.Signals, object] = {}

    def __call__(self) -> bool:
        return self._requested

    def __enter__(self) -> "Interruption":
        try:
            self._previous = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        except ValueError:
            log.debug("not in the main thread: Ctrl-C will stop the run without a checkpoint")
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True
        log.warning("stopping after this step, which will be saved (once more to stop at once)")
