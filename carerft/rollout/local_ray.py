"""The Ray that starts and reaches the processes of dedicated engines: one of this process's own, which ends with it, or
a cluster of several machines that runs already."""

import logging
import os
import socket

from carerft.errors import CareError


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
    inherited = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_worker_niceness": "0",  # an engine is not background work: the learner waits for it
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // engines)),
    }
    added = {key: value for key, value in inherited.items() if key not in os.environ}
    os.environ.update(added)
    try:
        ray.init(
            address="local",
            num_cpus=engines,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    finally:
        for key in added:
            del os.environ[key]
    return True
