"""Ctrl-C, and the signal that a cluster sends before it stops a job: finish the step, save, and stop."""

import logging
import signal
from types import FrameType

log = logging.getLogger(__name__)


class Interruption:
    """A context in which the first SIGINT or SIGTERM only asks to stop, and a second one stops at once.

    Calling it says whether a stop was asked for. Outside the main thread, where Python allows no signal handlers, it
    never is.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._asked = False
        self._previous: dict[signal.Signals, object] = {}

    def __call__(self) -> bool:
        return self._asked

    def __enter__(self) -> "Interruption":
        try:
            self._previous = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        except ValueError:
            log.debug("not in the main thread: Ctrl-C will not be met with a checkpoint")
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        log.warning("stopping after this step, which will be saved (once more to stop at once)")
