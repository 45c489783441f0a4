"""A process that runs a user's reward functions: one that hangs can be ended, and one that crashes takes no run along.

Run by `rewards.py` as `python -m carerft.training.reward_process FILE_DESCRIPTOR`. Messages are pickled: first the
references of the functions, then one dictionary of arguments each time; what comes back is `("ready", None)`,
`("scores", (one list for each function, logged))` or `("error", (which function, its words))`.
"""

import asyncio
import inspect
import os
import signal
import sys
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

from carerft.config.functions import Function, accepted, load_function, where
from carerft.errors import CareError


def main(file_descriptor: int) -> None:
    """Serve until the other end of the connection is closed."""
    connection = Connection(file_descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends this process
    os.dup2(2, 1)  # what a function prints must not stand among results
    try:
        functions = [load_function(reference, "reward.functions") for reference in connection.recv()]
        connection.send(("ready", None))
        while True:
            connection.send(_scores(functions, connection.recv()))
    except CareError as error:
        connection.send(("error", (0, error.what)))
    except (EOFError, OSError):
        pass


def _scores(functions: list[Function], given: dict[str, Any]) -> tuple[str, Any]:
    logged: dict[str, list[float]] = {}
    given = {
        **given,
        "trainer_state": SimpleNamespace(**given["trainer_state"]),
        "log_metric": lambda name, value: logged.setdefault(str(name), []).append(float(value)),
        "log_extra": lambda column, values: None,
    }
    scores = []
    for number, function in enumerate(functions):
        try:
            scores.append(plain(_called(function, given)))
        except (Exception, SystemExit) as error:  # the user's code can raise anything
            return "error", (number, where(error))
    return "scores", (scores, {name: sum(values) / len(values) for name, values in logged.items()})


def _called(function: Function, given: dict[str, Any]) -> Any:
    result = function(**accepted(function, given))
    return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


async def _awaited(result: Any) -> Any:
    return await result


def plain(result: Any) -> Any:
    """A list of Python's own numbers from what a function returned (a list, an array or a tensor), where it is one."""
    if hasattr(result, "tolist"):
        result = result.tolist()
    if not isinstance(result, list | tuple):
        return result
    return [value.item() if hasattr(value, "item") else value for value in result]


if __name__ == "__main__":
    main(int(sys.argv[1]))
