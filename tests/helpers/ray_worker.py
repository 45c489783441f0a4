"""A worker of Ray that begins with vLLM imported: this script asks the fork server for it, and ends when it ends.

`python ray_worker.py default_worker.py ARGUMENTS...`, as Ray writes it behind its wrapper, `setup_worker.py`, which
imports Ray only to start the worker. Ray knows the worker by the pid with which it registers. The processes that share
an engine's weights import this module again, and no package that no test uses.
"""

import os
import sys
from pathlib import Path

OF_THE_WRAPPER = ("--language=", "--serialized-runtime-env-context=")

sys.modules |= dict.fromkeys(name for name in ("sklearn", "torchao") if name not in sys.modules)


def forked(arguments: list[str]) -> int:
    """The exit status of a fork that runs this script again."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from helpers import processes

    ended, status = os.pipe()
    processes.install(os.environ[processes.DIRECTORY])
    command = (os.path.abspath(__file__), arguments)
    # Ray kills the group of a worker that has ended: it must be the fork's own.
    processes.fork(command, os.getcwd(), dict(os.environ), True, [0, 1, 2, status], engine=True)
    os.close(status)
    return os.waitstatus_to_exitcode(int(os.read(ended, 16) or 9)) % 256


if __name__ == "__main__":
    if "vllm" not in sys.modules and "CARERFT_TEST_SERVER" in os.environ:
        sys.exit(forked(sys.argv[1:]))
    sys.argv = [argument for argument in sys.argv[1:] if not argument.startswith(OF_THE_WRAPPER)]
    exec(compile(Path(sys.argv[0]).read_text(), sys.argv[0], "exec"))
