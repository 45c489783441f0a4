"""The process that runs a user's own functions, as `python -m carerft.processes.function_process FILE_DESCRIPTOR`.

Messages are pickled. The first names the functions and their setting's key; each of the others holds the number of a
function and its arguments. What comes back is `("ready",)` or `("refused", what, remedy)`, then `("value", result,
logged)`, `("failed", why)` or `("unfit", what, remedy)`.
"""

import asyncio
import inspect
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from carerft.config.functions import Function, accepted, load_function, path, where
from carerft.errors import ConfigError
from carerft.processes.functions import Metrics, Shown

PARENT_CHECK_SECONDS = 2


def main(file_descriptor: int) -> None:
    """Serve until the other end of the connection is closed."""
    connection = Connection(file_descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends this process
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    sys.path.append(os.getcwd())
    try:
        references, key = connection.recv()
        try:
            functions = [load_function(reference, key) for reference in references]
        except ConfigError as error:
            return connection.send(("refused", error.what, error.remedy))
        connection.send(("ready",))
        while True:
            number, given = connection.recv()
            connection.send(_answer(functions[number], key, references[number], given))
    except (EOFError, OSError):
        pass


def _watch(parent: int) -> None:
    """End with the run: a function that hangs does not see that the connection is closed."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)


def _answer(function: Function, key: str, reference: str, given: dict[str, Any]) -> tuple[Any, ...]:
    try:
        arguments = accepted(function, given, f"{key}={reference}")
        result = function(**arguments)
        if inspect.isawaitable(result):
            result = asyncio.run(_awaited(result))
        logs = [value.means() for value in given.values() if isinstance(value, Metrics)]
        return "value", plain(result), logs[0] if logs else {}
    except ConfigError as error:
        return "unfit", error.what, error.remedy
    except BaseException as error:  # the user's code can raise anything
        return "failed", where(error, path(reference))


async def _awaited(result: Any) -> Any:
    return await result


def plain(result: Any) -> Any:
    """What a function returned as Python's own: a number or None, or, of a list, an array or a tensor, a list of
    these."""
    if hasattr(result, "tolist"):
        result = result.tolist()
    if isinstance(result, list | tuple):
        return [plain(value) for value in result]
    for kind in (bool, int, float):
        if isinstance(result, kind):
            return kind(result)
    return None if result is None else Shown(repr(result)[:100])


if __name__ == "__main__":
    main(int(sys.argv[1]))
