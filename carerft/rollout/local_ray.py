"""The Ray that starts and reaches the processes of dedicated engines: one of this process's own, which ends with it, or
a cluster of several machines that runs already."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from carerft.errors import CareError

PLACES = ("", "LOCAL_", "GROUP_", "ROLE_")
TORCHRUN = {
    *(f"{place}{what}" for place in PLACES for what in ("RANK", "WORLD_SIZE")),
    "ROLE_NAME",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OMP_NUM_THREADS",
}


def start_ray(engines: int) -> bool:
    """Join the cluster that the environment's RAY_ADDRESS names, else start a Ray here, with nothing that isn't needed.

    Returns whether it is this process's to leave or to end; it isn't where the process was in a cluster already. Raises
    CareError where no cluster is at that address, HOST:PORT or "auto".
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
    with environment_of_engines(engines):
        ray.init(
            address="local",
            num_cpus=engines,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    return True


def lacking_gpus(count: int) -> str:
    """What Ray lacks for this many GPUs, in words; "" where it has them free."""
    import ray

    total, free = (int(of.get("GPU", 0)) for of in (ray.cluster_resources(), ray.available_resources()))
    return f"{count} GPUs are wanted for engines, of Ray's {total} are {free} free" if free < count else ""


@contextmanager
def environment_of_engines(engines: int) -> Iterator[None]:
    """What the processes that Ray starts inherit, for the length of a `with` block: nothing of torchrun's, or an engine
    would take the learner's group for its own."""
    before = dict(os.environ)
    if "TORCHELASTIC_RUN_ID" in before:
        for key in before:
            if key.startswith("TORCHELASTIC_") or key in TORCHRUN:
                del os.environ[key]
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # an engine is not background work: the learner waits for it
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // engines)))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
