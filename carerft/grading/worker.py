"""A grading worker: a process that receives pairs on a connection and sends back their outcomes.

Run by `pool.py` as `python -m carerft.grading.worker CPU_SECONDS MEMORY_MB FILE_DESCRIPTOR`. Messages are JSON: null
when the worker is ready, then [number, gold, answer] in and [number, correct, why] out, one pair at a time.

There are two processes, so that the death of one costs milliseconds and not another import of sympy: the outer one
imports, then forks the inner one, which does the work. Whenever that one dies, the outer one reports it as the outcome
of the current pair (number null) and forks another. The kernel ends the inner one when a pair has used its CPU seconds,
whatever code is running: time on a busy machine doesn't count, and a worker whose parent was killed cannot run on
either. Memory is limited likewise.
"""

import contextlib
import gc
import json
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from carerft.grading.algebra import compare, prepare

EXIT_DONE, EXIT_MEMORY = 0, 3
_PARENT_CHECK_SECONDS = 20


def main(cpu_seconds: float, memory_mb: int, file_descriptor: int) -> None:
    """Serve until the other end of the connection is closed."""
    connection, parent = Connection(file_descriptor), os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    prepare()
    os.dup2(0, 2)  # standard input is /dev/null
    gc.collect()
    gc.freeze()  # the forks share this memory
    megabytes = memory_mb * 2**20
    for limit, value in ((resource.RLIMIT_AS, megabytes), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(limit, (value, value))
    message: Any = None
    while True:
        with contextlib.suppress(OSError):  # the parent has gone: the next fork finds out too, and ends
            connection.send_bytes(json.dumps(message).encode())
        child = os.fork()
        if child == 0:
            _serve(connection, parent, cpu_seconds)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == EXIT_DONE:
            return
        message = [None, None, _cause(code, cpu_seconds, memory_mb)]


def _cause(code: int, cpu_seconds: float, memory_mb: int) -> str:
    if code == -signal.SIGPROF:
        return f"needed more than {cpu_seconds:g} s of CPU time"
    if code == EXIT_MEMORY:
        return f"needed more than {memory_mb} MB of memory"
    return f"the grading process ended with {signal.Signals(-code).name if code < 0 else f'code {code}'}"


def _serve(connection: Connection, parent: int, cpu_seconds: float) -> None:
    """The inner process: never returns."""
    code = 1
    try:
        while True:
            while not connection.poll(_PARENT_CHECK_SECONDS):
                os.kill(parent, 0)  # a process forked by the parent may hold the connection open after its death
            number, gold, answer = json.loads(connection.recv_bytes())
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            correct, why = compare(gold, answer)
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.send_bytes(json.dumps([number, correct, why]).encode())
    except MemoryError:
        code = EXIT_MEMORY
    except (EOFError, OSError):
        code = EXIT_DONE
    finally:
        os._exit(code)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
