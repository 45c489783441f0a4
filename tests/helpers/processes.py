"""Processes of the tests that begin with everything imported.

`python -m carerft train` spends nearly all of a short test on importing torch and transformers. Here one server process
imports them once a session (`fork_server.py`), and each command of the tests is a fork of it: a real process with its
own pid, session, working directory, environment, arguments, streams and exit status, which can be killed, interrupted
and waited for.

What imports vLLM as well (a command with `rollout=vllm`) is a fork of a second server, which the
first one forks when it is asked for: vLLM takes as long again as everything else.

`install` puts `Popen` in the place of `subprocess.Popen`, in the processes of pytest and in every fork, so that the
commands which carerft itself starts (the runs of a sweep, torchrun and its processes) are forks as well. Only commands
of MODULES are; every other command is started as usual.

All forks share the seed of string hashes, which an interpreter draws when it starts. A command with another one
(PYTHONHASHSEED) is none.
"""

import contextlib
import json
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

MODULES = ("carerft", "carerft.commands.*", "torch.distributed.run", "helpers.call")
"""The modules whose commands are forked. (carerft.grading.worker isn't among them: it limits its memory.)"""
IMPORT_TIME = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONHASHSEED", "HF_HOME")
"""Environment variables that modules read while they are imported: a command that sets another value isn't forked."""
UNUSED = ("sklearn", "torchao")
"""Packages that transformers imports where they are installed, in more than a second, for what no test uses."""
DIRECTORY = "CARERFT_TEST_SERVER"
"""The environment variable by which the processes of pytest-xdist find the server: the directory of its socket."""

DEDICATED = "rollout.placement=dedicated"
ENGINE = "CARERFT_TEST_ENGINE"
"""Set in the environment of a command that is to begin with vLLM imported; those with rollout=vllm do anyway."""

_directory: str | None = None
_imported_with: dict[str, str | None] = {}  # the values of IMPORT_TIME that the server has


@contextlib.contextmanager
def server() -> Iterator[None]:
    """Offer the server to this process and to those that it starts, for the length of a `with` block.

    It imports nothing before the first command arrives. Where another process has started one, that one is used.
    """
    if DIRECTORY in os.environ:
        install(os.environ[DIRECTORY])
        yield
        return
    with (
        tempfile.TemporaryDirectory(prefix="fork-server-") as directory,
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as engines,
    ):
        for place, name in ((listener, "socket"), (engines, "engines")):
            place.bind(f"{directory}/{name}")
            place.listen(64)
        os.environ[DIRECTORY] = directory
        here = Path(__file__).parent
        path = os.pathsep.join([str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        started = subprocess.Popen(
            [sys.executable, "-m", "helpers.fork_server", directory, str(listener.fileno()), str(engines.fileno())],
            pass_fds=[listener.fileno(), engines.fileno()], env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the tests, which then end the server
        )  # fmt: skip
        listener.close()  # a server that has ended then refuses connections
        engines.close()
        install(directory)
        try:
            yield
        finally:
            del os.environ[DIRECTORY]
            started.communicate()  # the end of its standard input ends it


def install(directory: str) -> None:
    """From here on, `subprocess` starts the commands of MODULES as forks of the server with this directory."""
    global _directory, _imported_with
    _directory, _imported_with = directory, {name: os.environ.get(name) for name in IMPORT_TIME}
    subprocess.Popen = Popen


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """Within the `with` block, these packages seem not to be installed, unless they are imported already."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules |= dict.fromkeys(hidden)
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def parsed(command: Any) -> tuple[str, list[str]] | None:
    """The module and the arguments of a command of MODULES, `[sys.executable, "-m", MODULE, ...]`; None for others."""
    if not isinstance(command, Sequence) or isinstance(command, (str, bytes)):
        return None
    words = [os.fsdecode(word) for word in command]
    if words[1:2] == ["-u"]:  # torchrun's; a fork flushes what it writes at its end
        del words[1]
    if len(words) < 3 or words[0] != sys.executable or words[1] != "-m":
        return None
    return (words[2], words[3:]) if any(fnmatchcase(words[2], module) for module in MODULES) else None


def with_short_workers(command: Any) -> Any:
    """A command that starts Ray's raylet, changed so that `ray_worker.py` starts its workers; any other as it is."""
    if not isinstance(command, list) or not str(command[0]).endswith("/raylet"):
        return command
    wrapped = re.compile(r"^(--python_worker_command=\S+) \S+/setup_worker\.py (?=\S+/default_worker\.py )")
    return [wrapped.sub(rf"\1 {Path(__file__).with_name('ray_worker.py')} ", word) for word in command]


class Popen(subprocess.Popen):
    """subprocess.Popen, of which the commands of MODULES are forks of the server."""

    _status: int | None = None  # of a fork: the file descriptor from which its exit status can be read

    def _execute_child(self, *given: Any) -> None:
        (args, _, preexec, _, passed, cwd, env, _, _, shell, stdin, stdin_write, stdout_read, stdout, stderr_read,
         stderr, _, gid, gids, uid, umask, session, group) = given  # fmt: skip
        environment = {os.fsdecode(k): os.fsdecode(v) for k, v in (os.environ if env is None else env).items()}
        unusual = preexec or passed or shell or [gid, gids, uid] != [None] * 3 or umask != -1 or group != -1
        same = all(environment.get(name) == value for name, value in _imported_with.items())
        command = None if unusual or not same or _directory is None else parsed(args)
        if command is None:
            return super()._execute_child(with_short_workers(args), *given[1:])
        streams = [own if own != -1 else usual for own, usual in ((stdin, 0), (stdout, 1), (stderr, 2))]
        directory = os.path.abspath(os.fsdecode(cwd or "."))
        self._status, written = os.pipe()
        try:
            engine = ENGINE in environment or ("rollout=vllm" in command[1] and DEDICATED not in command[1])
            self.pid = fork(command, directory, environment, bool(session), [*streams, written], engine)
        finally:
            os.close(written)
            self._close_pipe_fds(stdin, stdin_write, stdout_read, stdout, stderr_read, stderr)
        self._child_created = True

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        """What os.waitpid would return of the process. The caller holds _waitpid_lock."""
        if self._status is None:
            return super()._try_wait(wait_flags)
        if wait_flags & os.WNOHANG and not select.select([self._status], [], [], 0)[0]:
            return 0, 0
        told = os.read(self._status, 16)
        os.close(self._status)
        return self.pid, int(told or 9)  # a server that was killed says nothing

    def _internal_poll(self, *arguments: Any, **keywords: Any) -> int | None:
        if self._status is None:
            return super()._internal_poll(*arguments, **keywords)
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid:
                        self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def fork(
    command: tuple[str, list[str]],
    directory: str,
    environment: Mapping[str, str],
    session: bool,
    descriptors: Sequence[int],
    engine: bool = False,
) -> int:
    """The pid of a new process. descriptors: its standard streams, and where its exit status is written. engine: begin
    with vLLM imported."""
    request = {"module": command[0], "arguments": command[1], "directory": directory}
    request |= {"environment": environment, "session": session}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"{_directory}/{'engines' if engine else 'socket'}")
        socket.send_fds(connection, [b"."], list(descriptors))
        with connection.makefile("rw") as stream:
            stream.write(json.dumps(request) + "\n")
            stream.flush()
            answer = stream.readline()
    if not answer:
        raise OSError("the fork server of the tests has ended; tests/helpers/fork_server.py")
    return int(answer)


def running(*words: str, **variables: str) -> list[int]:
    """The pids of living processes whose arguments contain these words, and whose environment these variables."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            pid, record = int(path.name), Path(_directory or "", path.name)
            if _directory and record.exists():  # a fork's own arguments and environment are not in /proc
                written = json.loads(record.read_text())
                command, environment = " ".join(written["arguments"]), written["environment"]
            else:
                command = (path / "cmdline").read_bytes().decode(errors="replace")
                entries = (path / "environ").read_bytes().decode(errors="replace").split("\0")
                environment = dict(entry.partition("=")[::2] for entry in entries)
        except (OSError, ValueError):  # it has ended, begins just now, or is somebody else's
            continue
        if all(word in command for word in words) and variables.items() <= environment.items():
            found.append(pid)
    return found


def call(
    function: Callable[..., None], *arguments: Any, count: int, timeout: float = 300, engine: bool = False
) -> None:
    """Call a function of a test module in `count` processes: in each with its rank, then these arguments (JSON values).

    engine: they begin with vLLM imported.

    Raises AssertionError with what they wrote where one fails or they take more than `timeout` seconds.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment |= {ENGINE: "1"} if engine else {}
    command = [sys.executable, "-m", "helpers.call", function.__module__, function.__name__]
    started = [
        subprocess.Popen(
            [*command, json.dumps([rank, *arguments])],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        with ThreadPoolExecutor(count) as threads:
            written = list(threads.map(lambda process: process.communicate(timeout=timeout)[0], started))
        assert not any(process.returncode for process in started), "\n".join(written)
    finally:
        for process in started:
            process.kill()
