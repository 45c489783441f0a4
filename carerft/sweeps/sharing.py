"""Which runs of a sweep a process takes: none that another process has, and none that is finished elsewhere.

Several processes may go through the same sweep at once. A run that failed, or whose process died, is left alone by all
of them until the sweep is started again. A finished run serves every experiment that contains its configuration.
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from carerft.config.identity import config_hash
from carerft.runs.directory import SWEEP, locked, read_manifest
from carerft.runs.inputs import changed_since, inputs
from carerft.sweeps.index import index

LOGS = {"train.log", "evaluate.log", ".lock"}
log = logging.getLogger(__name__)


def job_directory(command: str, config: Mapping[str, Any]) -> Path | None:
    """The directory of the run that Hydra has started, or None if this process must not run it.

    In a multirun, a run that another experiment has finished becomes a link to it.
    """
    hydra = HydraConfig.get()
    directory = Path(hydra.runtime.output_dir)
    if hydra.mode != RunMode.MULTIRUN:
        return directory
    if reason := reason_to_skip(directory):
        log.info("%s is left alone: %s", directory, reason)
        return None
    if finished := link_finished_run(directory, command, config, Path(hydra.sweep.dir).absolute().parent):
        log.info("%s is done already, as %s: nothing to do", directory, finished)
        return None
    return directory


def link_finished_run(directory: Path, command: str, config: Mapping[str, Any], outputs: Path) -> Path | None:
    """Make `directory` a link to a finished run of the same command, configuration and inputs in `outputs`.

    Returns that run; None if there is none, or if the directory holds anything but a log. Nothing is ever deleted
    through a link: the directory is renamed before it is deleted.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with open(directory.parent / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two processes, the second must see the first's link
        if directory.is_symlink() or any(file.name not in LOGS for file in directory.glob("*")):
            return None
        now = inputs(config)
        done = (
            run
            for run, manifest in index(outputs.absolute()).runs(config_hash(config))
            if (manifest["command"], manifest["status"]) == (command, "done") and not changed_since(run, manifest, now)
        )
        if (finished := next(done, None)) is None:
            return None
        if directory.exists():  # a file that is written into it meanwhile moves along
            renamed = directory.with_name(f".{directory.name}.{os.getpid()}")
            directory.rename(renamed)
            shutil.rmtree(renamed)
        try:
            directory.symlink_to(os.path.relpath(finished, directory.parent))
        except FileExistsError:  # another process has just begun a run there
            return None
        return finished


def reason_to_skip(directory: Path) -> str | None:
    """Why a process of a sweep leaves this run alone; None if it may run it, or if the process belongs to no sweep."""
    sweep = os.environ.get(SWEEP)
    manifest = read_manifest(directory) if sweep else None
    if manifest is None or manifest["status"] == "done":
        return None
    if locked(directory):
        return "another process is running it"
    if manifest.get("sweep") == sweep:
        return "it failed in this sweep" if manifest["status"] == "failed" else "the process that ran it died"
    return None
