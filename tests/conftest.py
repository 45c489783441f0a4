"""What holds for every test: one thread, commands that begin with everything imported, and the smallest model."""

import gc
import importlib.util
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# For small matrices more threads are slower, most of all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where a test asks for more, they sleep while they wait: threads that spin take a busy machine minutes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Ray ends an engine where 95% of the machine's memory is taken, by whatever it is.
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
# Its first worker waits until everything is imported, on a busy machine for longer than Ray's usual minute.
os.environ.setdefault("RAY_worker_register_timeout_seconds", "300")

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them every process that they start,
# of which some are to be stopped by it.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from helpers import processes

if "PYTEST_XDIST_WORKER" in os.environ:  # elsewhere the tests import it, if any run there at all
    with processes.without(*processes.UNUSED):
        import transformers  # noqa: F401


@pytest.fixture
def model():
    from helpers.models import tiny_model

    return tiny_model()


def pytest_configure(config: pytest.Config) -> None:
    """Commands that the tests start are forks of one process that has imported everything."""
    if hasattr(os, "pidfd_open"):  # Linux
        offer = processes.server()
        offer.__enter__()
        config.add_cleanup(lambda: offer.__exit__(None, None, None))


ENGINES = (
    *("test_adapters", "test_chat", "test_engine_guest", "test_engine_start", "test_rollout_contract"),
    *("test_transfer", "test_vllm_run"),
)
"""The modules whose tests start engines in pytest's own process."""


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With --dist loadfile, ENGINES have a worker in common, which alone imports vLLM."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "engines" if Path(file).stem in ENGINES else file

    return Together(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="module", autouse=True)
def frozen_modules(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where engines start in pytest's own process, vLLM's modules stay frozen. It has the collector of
    garbage look through everything at each engine's start and end, for four seconds together."""
    if request.module.__name__ not in ENGINES or importlib.util.find_spec("vllm") is None:
        yield
        return
    from helpers.fork_server import PRELOADED_WITH_ENGINES, keep_frozen, load

    from carerft.rollout.engine import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    load(PRELOADED_WITH_ENGINES, Path(tempfile.gettempdir()))
    freeze, thaw = gc.freeze, gc.unfreeze
    keep_frozen()
    yield
    gc.freeze, gc.unfreeze = freeze, thaw


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector of garbage need not look through it again and again."""
    gc.collect()
    gc.freeze()
