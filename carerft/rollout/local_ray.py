"""Connects this process to Ray, which starts dedicated engines: to a running cluster, or to a Ray of its own."""

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from carerft.errors import CareError

log = logging.getLogger(__name__)

TORCHRUN_VARIABLE = re.compile(
    r"TORCHELASTIC_.*|((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|OMP_NUM_THREADS"
)


def start_ray(engines: int) -> bool:
    """Join the cluster that the environment's RAY_ADDRESS names; without that, start Ray here for this many engines.

    Returns whether the caller must shut Ray down: False if this process was connected to Ray before. Raises CareError
    if no cluster answers at that address, HOST:PORT or "auto".
    """
    import ray

    if ray.is_initialized():
        return False
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            if address != "auto":  # Ray would try for minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise CareError(
                f"RAY_ADDRESS={address}: no Ray cluster answers there ({type(error).__name__})",
                "give the HOST:PORT that `ray start --head` printed, or unset RAY_ADDRESS for engines on this machine",
            ) from error
        return True
    own: dict[str, Any] = {"address": "local", "num_cpus": engines, "include_dashboard": False}
    with environment_of_engines(engines):
        try:
            ray.init(**own, logging_level=logging.ERROR, log_to_driver=False)
        except Exception as error:  # Ray has no class for it
            if "timed out during startup" not in str(error):
                raise
            log.warning("Ray did not start within its half a minute, as on a busy machine: starting it again")
            ray.shutdown()
            ray.init(**own, logging_level=logging.ERROR, log_to_driver=False)
    return True


def gpu_shortage(count: int) -> str:
    """A sentence about the GPUs that Ray lacks for engines that need this many; empty if enough are free."""
    import ray

    total, free = (int(resources.get("GPU", 0)) for resources in (ray.cluster_resources(), ray.available_resources()))
    return f"the engines need {count} GPUs; {free} of Ray's {total} are free" if free < count else ""


@contextmanager
def environment_of_engines(engines: int) -> Iterator[None]:
    """Set the environment that the processes of Ray inherit, for the length of a `with` block.

    They inherit none of torchrun's variables: an engine would join the learner's process group. RAY_AUTH_MODE outlives
    the block. When `ray.init` has set it, this process refuses, until it ends, every request without the token of its
    user's Ray. A cluster that it starts later has to know: otherwise this process would refuse that cluster's requests,
    be taken for dead, and have its engines cancelled (ActorDiedError).
    """
    before = dict(os.environ)
    if "TORCHELASTIC_RUN_ID" in before:
        for key in before:
            if TORCHRUN_VARIABLE.fullmatch(key):
                del os.environ[key]
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # an engine is not background work: the learner waits for it
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // engines)))
    try:
        yield
    finally:
        authentication = {key: value for key, value in os.environ.items() if key == "RAY_AUTH_MODE"}
        os.environ.clear()
        os.environ.update(before | authentication)
