"""Worker processes in which pairs of answers meet math-verify: whatever happens there, the caller gets a verdict.

math-verify's own time limits use signal.alarm, which works in the main thread only, cancels an outer alarm, and does
not stop a long multiplication. Here the kernel ends a pair that uses too much CPU time or memory (see `worker.py`), and
a worker that misses a deadline by the clock is killed; the other pairs go on.

Needs a POSIX system (Linux, macOS). macOS does not enforce the memory limit.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from carerft.errors import CareError
from carerft.processes import Child

START_SECONDS = 120.0
PAIRS_PER_WORKER = 50
"""A further worker takes about a second to start: worth it for this many pairs."""

Outcome = tuple[bool | None, str]
"""Equal or not, None for no verdict; and why."""


class Pool(contextlib.AbstractContextManager["Pool"]):
    """Worker processes, started when first needed and ended by `close`, by leaving a `with`, or with this process.

    May be used from any thread (calls take turns). In a process forked from this one it starts workers of its own.
    """

    def __init__(
        self,
        workers: int | None = None,
        cpu_seconds: float = 1.0,
        deadline: float = 20.0,
        memory_mb: int = 1024,
    ):
        """workers: the most processes; None: one per CPU core. cpu_seconds: CPU time for a pair (ordinary ones take
        0.01, the slowest of MATH 0.15). deadline: seconds by the clock after which a worker is killed, for an
        overloaded machine. memory_mb: address space of a worker."""
        self.workers = workers or os.cpu_count() or 1
        self._new_worker = lambda: _Worker(cpu_seconds, deadline, memory_mb)
        self._lock = threading.Lock()
        self._running: list[_Worker] = []
        os.register_at_fork(after_in_child=self._running.clear)  # they belong to the parent

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers. The pool may be used again: it starts new ones."""
        for worker in self._running:
            worker.kill()
        self._running.clear()

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[Outcome]:
        """One outcome per (gold, answer), in order. Raises CareError if workers cannot be started at all."""
        if not pairs:
            return []
        outcomes: list[Outcome] = [(None, "not graded")] * len(pairs)
        remaining = iter(range(len(pairs)))

        def serve(worker: _Worker) -> None:
            for index in remaining:
                outcomes[index] = worker.compare(*pairs[index])

        with self._lock:
            count = min(self.workers, -(-len(pairs) // PAIRS_PER_WORKER))
            while len(self._running) < count:
                self._running.append(self._new_worker())
            with ThreadPoolExecutor(count) as threads:
                try:
                    list(threads.map(serve, self._running[:count]))
                except BaseException:  # Ctrl-C among others
                    for _ in remaining:
                        pass  # the threads find no further pair
                    self.close()
                    raise
        return outcomes


class _Worker:
    """One worker process, started when first needed."""

    def __init__(self, cpu_seconds: float, deadline: float, memory_mb: int):
        self.limits, self.deadline = (str(cpu_seconds), str(memory_mb)), deadline
        self.child: Child | None = None
        self._number = 0

    def compare(self, gold: str, answer: str) -> Outcome:
        """The outcome of one pair. A process that does not give one is killed; the next pair starts another."""
        try:
            child = self.child = self.child or self._started()
            self._number += 1
            child.connection.send_bytes(json.dumps([self._number, gold, answer]).encode())
            while True:
                number, correct, why = json.loads(child.receive(self.deadline))
                if number in (self._number, None):  # else a pair for which the fork's death was reported already
                    return correct, why
        except TimeoutError as error:
            why = str(error)
        except (EOFError, OSError):
            why = "the grading process was ended from outside"
        self.kill()
        return None, why

    def _started(self) -> Child:
        child = Child(
            "carerft.grading.worker", *self.limits, stdout=subprocess.DEVNULL, variables={"OMP_NUM_THREADS": "1"}
        )
        self.child = child  # which `kill` must find
        try:
            child.receive(START_SECONDS)
        except EOFError:
            raise CareError(
                f"a grading worker could not start (exit code {child.process.wait()})",
                f"see its message above; try {sys.executable} -c 'import math_verify'",
            ) from None
        return child

    def kill(self) -> None:
        """End the process, if there is one. May be called while another thread waits in `compare`."""
        child, self.child = self.child, None
        if child is not None:
            child.end()


@cache
def shared_pool() -> Pool:
    """The pool that all tasks of a process share."""
    return Pool()
