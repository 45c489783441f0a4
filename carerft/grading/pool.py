"""Worker processes in which pairs of answers meet math-verify: whatever happens there, the caller gets a verdict.

math-verify's own time limits use signal.alarm, which works in the main thread only, cancels an outer alarm, and does
not stop a long multiplication. Here a pair that uses too much CPU time or memory is ended by the kernel (see
`worker.py`), and one that is late by the parent's clock is killed with its worker; the other pairs go on.

Needs a POSIX system (Linux, macOS). macOS does not enforce the memory limit.
"""

import atexit
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from carerft.errors import CareError

START_SECONDS = 120.0
PAIRS_PER_WORKER = 50
"""A further worker takes about a second to start: worth it for this many pairs."""

Outcome = tuple[bool | None, str]
"""Equal or not, None where there is no verdict; and why."""


class Pool:
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
        """workers: at most so many processes; None: one per CPU core. cpu_seconds: what a pair may use (ordinary ones
        take 0.01, the slowest of MATH 0.15). deadline: seconds by the clock after which a worker is killed, for a
        machine that is too busy to get through them. memory_mb: address space of a worker."""
        self.workers = workers or os.cpu_count() or 1
        self.cpu_seconds, self.deadline, self.memory_mb = cpu_seconds, deadline, memory_mb
        self._lock = threading.Lock()
        self._running: list[_Worker] = []
        self._owner = os.getpid()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers. The pool may be used again: it starts new ones."""
        if self._owner != os.getpid():
            self._running = []  # the workers of the process that this one was forked from
        for worker in self._running:
            worker.stop()
        self._running = []
        atexit.unregister(self.close)

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[Outcome]:
        """One outcome per (gold, answer), in order. Raises CareError where workers cannot be started at all."""
        if not pairs:
            return []
        with self._lock:
            if self._owner != os.getpid():
                self._running, self._owner = [], os.getpid()
            try:
                return self._compare(pairs)
            except BaseException:
                self.close()  # Ctrl-C among others: what is under way must not answer the next call
                raise

    def _compare(self, pairs: Sequence[tuple[str, str]]) -> list[Outcome]:
        wanted = min(self.workers, -(-len(pairs) // PAIRS_PER_WORKER))
        atexit.unregister(self.close)
        atexit.register(self.close)
        while len(self._running) < wanted:
            self._running.append(_Worker(self.cpu_seconds, self.memory_mb))
        outcomes: list[Outcome] = [(None, "not graded")] * len(pairs)
        waiting = iter(range(len(pairs)))
        with selectors.DefaultSelector() as selector:

            def give_next(worker: _Worker) -> None:
                worker.pair = next(waiting, None)
                if worker.pair is None:
                    if worker.replies in selector.get_map():
                        selector.unregister(worker.replies)
                    return
                if worker.replies not in selector.get_map():
                    selector.register(worker.replies, selectors.EVENT_READ, worker)
                worker.send(*pairs[worker.pair], seconds=self.deadline)

            def replace(worker: _Worker, why: str) -> None:
                outcomes[worker.pair] = (None, why)
                selector.unregister(worker.replies)
                worker.kill()
                self._running[self._running.index(worker)] = fresh = _Worker(self.cpu_seconds, self.memory_mb)
                give_next(fresh)

            for worker in list(self._running):
                give_next(worker)
            while busy := [worker for worker in self._running if worker.pair is not None]:
                next_deadline = min(worker.deadline for worker in busy)
                for key, _ in selector.select(max(0.0, next_deadline - time.monotonic())):
                    worker = key.data
                    try:
                        outcome = worker.receive()
                    except EOFError as lost:
                        replace(worker, str(lost))
                        continue
                    if outcome is not None:
                        outcomes[worker.pair] = outcome
                        give_next(worker)
                for worker in busy:
                    if worker.pair is not None and worker in self._running and time.monotonic() > worker.deadline:
                        replace(worker, f"no answer within {self.deadline:g} s")
        return outcomes


class _Worker:
    """One worker process and the pair (an index) that it is at."""

    def __init__(self, cpu_seconds: float, memory_mb: int):
        package_root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "carerft.grading.worker", str(cpu_seconds), str(memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is this process's to handle; and one signal ends the worker and its fork
        )
        self.replies = self.process.stdout.fileno()
        self.pair: int | None = None
        self.deadline = 0.0
        self._ready = False
        self._number = 0
        self._buffer = b""

    def send(self, gold: str, answer: str, seconds: float) -> None:
        """Give it the next pair. The clock starts when the worker is up."""
        self._number += 1
        self._seconds = seconds
        self.deadline = time.monotonic() + (seconds if self._ready else START_SECONDS)
        request = {"id": self._number, "gold": gold, "answer": answer}
        with contextlib.suppress(BrokenPipeError):  # it died between two pairs: receive() will tell
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()

    def receive(self) -> Outcome | None:
        """What it has to say about its pair, None while that is nothing yet. Raises EOFError when it has gone."""
        received = os.read(self.replies, 65536)
        if not received:
            if not self._ready:
                raise CareError(
                    f"a grading worker could not start (exit code {self.process.wait()})",
                    f"see its message above; try {sys.executable} -c 'import math_verify'",
                )
            raise EOFError("the grading process was ended from outside")
        self._buffer += received
        outcome = None
        while b"\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\n")
            message: dict[str, Any] = json.loads(line)
            if message.get("ready"):
                self._ready, self.deadline = True, time.monotonic() + self._seconds
            elif "died" in message:
                outcome = (None, message["died"])
            elif message["id"] == self._number:  # else the reply to a pair that was given up already
                outcome = (message["correct"], message["why"])
        return outcome

    def stop(self) -> None:
        """End it, politely: it stops at the end of its input, at the latest when its pair has used its CPU time."""
        if self.pair is None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self.process.stdin.close()
                self.process.wait(timeout=2.0)
        self.kill()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


@lru_cache(maxsize=4)
def shared_pool(workers: int | None = None) -> Pool:
    """The pool that all tasks of a process use together."""
    return Pool(workers)
