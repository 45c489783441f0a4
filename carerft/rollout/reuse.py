"""Engines outlive a run: the next run in this process (the next cell of a sweep) reuses them if it needs the same.

At most one worker is kept idle, because a device has room for one.
"""

import atexit
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from carerft.rollout import RolloutWorker
from carerft.rollout.engine import EngineOptions

log = logging.getLogger(__name__)

idle: list[tuple[tuple, RolloutWorker]] = []  # the idle worker, if any, after the class and arguments that made it


@contextmanager
def reused(
    worker_class: Callable[..., RolloutWorker], options: EngineOptions, *arguments: Any
) -> Iterator[RolloutWorker]:
    """The idle worker, if the same class and arguments made it, but for a context that may be longer; otherwise that
    worker is closed and a new one made.

    At the end of the `with` block the worker becomes idle, until the process ends. If the block fails or is
    interrupted, the worker is closed instead.
    """
    made_by = (worker_class, replace(options, max_model_len=0), arguments)
    if idle and idle[0][0] == made_by and idle[0][1].context >= options.max_model_len:
        worker = idle.pop()[1]
    else:
        close_idle()
        start = time.perf_counter()
        worker = worker_class(options, *arguments)
        log.info("vLLM started in %.1f s", time.perf_counter() - start)
        atexit.unregister(close_idle)
        atexit.register(close_idle)  # after Ray's own, and therefore called before it
    try:
        yield worker
        worker.reset()
    except BaseException:
        worker.close()
        raise
    idle.append((made_by, worker))


def close_idle() -> None:
    """Close the idle worker, if there is one."""
    while idle:
        idle.pop()[1].close()
