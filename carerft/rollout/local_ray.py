"""A Ray of this process's own, which ends with it: what starts and reaches the processes of dedicated engines."""

import logging
import os


def start_ray(engines: int) -> bool:
    """Start it, with nothing that isn't needed. False: the process is in a Ray cluster already, which is used."""
    import ray

    if ray.is_initialized():
        return False
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
