"""The server behind `processes.py`: imports what a run imports, and forks itself for each command.

Started as `python -m helpers.fork_server DIRECTORY DESCRIPTOR DESCRIPTOR`, of sockets that listen at DIRECTORY/socket
and at DIRECTORY/engines. For what asks at the second it forks a server that imports vLLM as well. A server has one
thread, as a process that forks must, and ends with its standard input.
"""

import atexit
import contextlib
import gc
import importlib
import json
import multiprocessing.process
import os
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import threading
import traceback
import warnings
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from helpers import processes

PRELOADED = """
    carerft.assembly carerft.cli carerft.commands.evaluate carerft.commands.report carerft.commands.sweep
    carerft.commands.train carerft.tasks.world carerft.training.lookahead
    antlr4.LL1Analyzer matplotlib.figure omegaconf._impl peft rich.logging torch._dynamo torch.distributed.run
    torch.distributed.tensor transformers.models.qwen2.modeling_qwen2 transformers.models.qwen2.tokenization_qwen2 wandb
""".split()

PRELOADED_WITH_ENGINES = """
    vllm vllm.entrypoints.llm vllm.model_executor.models.qwen2 vllm.v1.engine.core vllm.v1.worker.cpu_worker
""".split()


def preload(directory: Path) -> None:
    """Import what a run imports, and let Hydra and transformers build the tables that every run would build.

    directory: of the temporary files that modules make while they are imported.
    """
    load(PRELOADED, directory)
    importlib.import_module("hydra.core.plugins").Plugins.instance()
    importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("qwen2")


def preload_engines(directory: Path) -> None:
    """Import what a process with an engine imports beside that, but not Ray, which reads its environment while it is
    imported: vLLM's modules for it are forgotten, so that a fork which needs one imports it with Ray."""
    os.environ |= importlib.import_module("carerft.rollout.engine").ENVIRONMENT
    with warnings.catch_warnings(), processes.without("ray"):
        warnings.simplefilter("ignore")
        load(PRELOADED_WITH_ENGINES, directory)
    for name in [name for name in sys.modules if name.startswith("vllm.") and ".ray_" in name]:
        package, _, last = name.rpartition(".")
        delattr(sys.modules[package], last)
        del sys.modules[name]


def load(modules: Sequence[str], directory: Path) -> None:
    tempfile.tempdir = str(directory)
    with processes.without(*processes.UNUSED):
        for name in modules:
            with contextlib.suppress(ImportError):  # the command says so itself
                importlib.import_module(name)
    tempfile.tempdir = None


def settle() -> None:
    """Prepare what is imported for forks."""
    for finalizer in weakref.finalize._registry:
        finalizer.atexit = False  # what belongs to the server is not a fork's to remove
    gc.collect()
    gc.freeze()  # the collector of a fork would touch, and with it copy, every page


def keep_frozen() -> None:
    """Freeze what there is for good: vLLM would thaw it."""
    gc.collect()
    gc.freeze()
    gc.freeze = gc.unfreeze = lambda: None


class Server:
    """Forks for each request that arrives at a socket, and reports the exit status of each fork.

    A fork that has ended keeps its pid until its exit status has been read, as a child that nobody has waited for does:
    torchrun signals the process group of each process that it has not yet seen end.

    engines: the socket of the requests for which a fork of this server becomes a server; None in that one.
    """

    def __init__(self, directory: Path, listener: socket.socket, engines: socket.socket | None):
        self.directory, self.listener, self.engines = directory, listener, engines
        self.selector = selectors.DefaultSelector()
        for place in filter(None, (sys.stdin, listener, engines)):
            self.selector.register(place, selectors.EVENT_READ)
        self.loaded, self.second = False, 0

    def serve(self) -> dict[str, Any] | None:
        """Serve until standard input ends. Returns None in a server, and in each fork its request."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is sys.stdin:
                    if self.second:
                        os.waitpid(self.second, 0)
                    return None
                if key.fileobj is self.engines and self.engines is not None:
                    self.split()
                    break
                if key.data:
                    key.data(key.fd)
                elif request := self.fork():
                    return request

    def split(self) -> None:
        """Fork the server of the processes with engines, which goes on from here as well."""
        engines = self.engines
        assert engines is not None
        self.load()
        self.second = os.fork()
        if self.second == 0:
            self.close()
            self.listener.close()
            self.__init__(self.directory, engines, None)
            preload_engines(self.directory)
            settle()
            keep_frozen()
            self.loaded = True
            return
        self.selector.unregister(engines)
        engines.close()
        self.engines = None

    def load(self) -> None:
        if not self.loaded:
            preload(self.directory)
            settle()
            self.loaded = True

    def fork(self) -> dict[str, Any] | None:
        """Fork for the next request. Returns None in the server, and in the fork, which answers, the request."""
        connection, _ = self.listener.accept()
        self.load()
        with connection, connection.makefile("rw") as stream:
            _, descriptors, _, _ = socket.recv_fds(connection, 1, 4)
            *streams, status = descriptors
            request = json.loads(stream.readline())
            pid = os.fork()
            if pid == 0:
                self.close()
                for place in filter(None, (self.listener, self.engines)):
                    place.close()
                os.close(status)
                for number, descriptor in enumerate(streams):
                    os.dup2(descriptor, number)
                    os.close(descriptor)
                if request["session"]:
                    os.setsid()  # before the answer, after which the fork may be sent signals as a group
                (self.directory / str(os.getpid())).write_text(json.dumps(request))
                stream.write(f"{os.getpid()}\n")
                return request
        for descriptor in streams:
            os.close(descriptor)
        self.selector.register(os.pidfd_open(pid), selectors.EVENT_READ, partial(self.report, pid, status))
        return None

    def report(self, pid: int, status: int, ended: int) -> None:
        """Write the exit status of a fork that has ended, as os.waitpid returns it, and wait until it has been read."""
        self.selector.unregister(ended)
        os.close(ended)
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert end is not None
        word = end.si_status << 8 if end.si_code == os.CLD_EXITED else end.si_status
        with contextlib.suppress(BrokenPipeError):  # nobody waits for it
            os.write(status, str(word).encode())
        (self.directory / str(pid)).unlink()
        # The other end of the pipe is closed by whoever has read the status, or at the end of that process.
        self.selector.register(status, selectors.EVENT_READ, partial(self.reap, pid))

    def reap(self, pid: int, status: int) -> None:
        self.selector.unregister(status)
        os.close(status)
        os.waitpid(pid, 0)

    def close(self) -> None:
        """Close what a fork has inherited of the server."""
        for key in self.selector.get_map().values():
            if key.data:
                for descriptor in {key.fd, *key.data.args[1:]}:
                    os.close(descriptor)
        self.selector.close()


def become(request: dict[str, Any]) -> None:
    """Give this fork what a new interpreter would have, started by this request."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["directory"])
    multiprocessing.process.ORIGINAL_DIR = os.getcwd()  # where the processes that it spawns begin
    os.environ.clear()
    os.environ.update(request["environment"])
    places = [os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.path[:] = [os.getcwd(), *places, *sys.path[1:]]
    importlib.invalidate_caches()
    if "wandb" in sys.modules:  # the temporary directory that W&B makes while it is imported
        sys.modules["wandb.sdk.data_types._private"].MEDIA_TMP.__init__("wandb-media")
    sys.argv = [request["module"], *request["arguments"]]


def run(module: str) -> int:
    """Run a module as `python -m` does, or a file, and what an interpreter does at its exit. Returns the status."""
    status = 0
    try:
        if module.endswith(".py"):
            runpy.run_path(module, run_name="__main__")
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return status


if __name__ == "__main__":
    processes.install(sys.argv[1])  # before torchrun's modules are imported, which take Popen by name
    sockets = [socket.socket(fileno=int(descriptor)) for descriptor in sys.argv[2:]]
    request, status = Server(Path(sys.argv[1]), *sockets).serve(), 0
    if request is not None:
        become(request)
        status = run(request["module"])
    os._exit(status)  # an ordinary exit would spend a second on taking all those modules down
