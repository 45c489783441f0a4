"""Processes of this package that can be ended whatever they do: `Child` starts one, and `functions` calls a user's own
functions in one. And what one of several processes makes for all: `made_once`."""

import fcntl
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]


class Child:
    """A module of this package, run by a Python of its own with a connection to here. It ends with `end()`, with this
    object, or with this process.

    Its last argument is the file descriptor of its end of the connection. Its working directory is no place for its
    imports. Ctrl-C does not reach it, and one signal ends it with all that it has started: it leads a session.
    """

    def __init__(self, module: str, *arguments: str, stdout: int, variables: Mapping[str, str] | None = None):
        self.connection, remote = Pipe()
        path = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments, str(remote.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            pass_fds=[remote.fileno()],
            env={**os.environ, "PYTHONPATH": path, **(variables or {})},
            start_new_session=True,
        )
        remote.close()
        self.end = weakref.finalize(self, _end, self.process, os.getpid())

    def receive(self, seconds: float) -> bytes:
        """What it sends next, as bytes: not every such process is trusted with pickles. Raises TimeoutError, and
        EOFError or OSError if it has ended."""
        if not self.connection.poll(seconds):
            raise TimeoutError(f"no answer within {seconds:g} s")
        return self.connection.recv_bytes()


def made_once(path: Path, lock: Path, make: Callable[[], None]) -> None:
    """Call `make` if `path` is absent, which it writes. Of several processes that need it at once, one makes it, while
    the others wait for the file `lock`."""
    if not path.exists():
        lock.parent.mkdir(parents=True, exist_ok=True)
        with open(lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not path.exists():
                make()


def _end(process: subprocess.Popen[bytes], parent: int) -> None:
    if os.getpid() != parent:  # in a fork, which has a copy of the object
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
