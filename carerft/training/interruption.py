"""Ctrl-C (SIGINT), and the signal by which a cluster announces the end of a job (SIGTERM)."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)


@contextmanager
def interruption(begun: Callable[[], bool] = lambda: True) -> Iterator[Callable[[], bool]]:
    """Finish the step, save, and stop: in a `with` block the first signal requests a stop and a second one stops at
    once. Yields a function that returns whether a stop was requested.

    begun: whether there is a step to save; before the first one, the first signal stops at once.

    Outside the main thread, where Python allows no signal handlers, signals keep their usual effect.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received or not begun():
            raise KeyboardInterrupt
        received.append(number)
        log.warning("stopping after this step, which will be saved (once more to stop at once)")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    with signals_handled(handle):
        yield lambda: bool(received)


@contextmanager
def signals_handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let this function handle SIGINT and SIGTERM for the length of a `with` block."""
    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler_before in previous.items():
            signal.signal(number, handler_before)
