"""A worker of Ray, without what takes seconds before it works: a wrapper that imports Ray only to start the worker, and
packages that no test uses.

`python ray_worker.py default_worker.py ARGUMENTS...`, as Ray writes it behind its wrapper, `setup_worker.py`. The
processes that share an engine's weights import this module again.
"""

import sys
from pathlib import Path

OF_THE_WRAPPER = ("--language=", "--serialized-runtime-env-context=")

sys.modules |= dict.fromkeys(name for name in ("sklearn", "torchao") if name not in sys.modules)

if __name__ == "__main__":
    sys.argv = [argument for argument in sys.argv[1:] if not argument.startswith(OF_THE_WRAPPER)]
    exec(compile(Path(sys.argv[0]).read_text(), sys.argv[0], "exec"))
