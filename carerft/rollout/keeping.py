"""Engines outlive a run: the next one in this process (a sweep's next cell) takes them over where it asks for the same.

One worker is kept at a time, because one is all that a device has room for.
"""

import atexit
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

log = logging.getLogger(__name__)


class Keepable(Protocol):
    """A worker that can be handed on from one run to the next."""

    def rest(self) -> None: ...

    def close(self) -> None: ...


Worker = TypeVar("Worker", bound=Keepable)
_kept: list[tuple[tuple, Any]] = []  # what it was made of, and the worker; none or one


@contextmanager
def kept(kind: Callable[..., Worker], *arguments: Any) -> Iterator[Worker]:
    """`kind(*arguments)`, or the worker of an earlier run that asked for exactly this; any other kept one is ended.

    It is kept in its turn, until the process ends, unless the block fails or is interrupted: then it is ended here.
    """
    asked = (kind, arguments)
    if _kept and _kept[0][0] == asked:
        worker = _kept.pop()[1]
    else:
        close()
        began = time.perf_counter()
        worker = kind(*arguments)
        log.info("vLLM started in %.1f s", time.perf_counter() - began)
        atexit.unregister(close)
        atexit.register(close)  # after Ray's own, so that it runs before it
    try:
        yield worker
        worker.rest()
    except BaseException:
        worker.close()
        raise
    _kept.append((asked, worker))


def close() -> None:
    """End the kept worker, if there is one."""
    while _kept:
        _kept.pop()[1].close()
