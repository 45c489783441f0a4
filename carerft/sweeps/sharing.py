"""How the runs of sweeps keep out of each other's way: a finished run serves every experiment that has it.

Several processes may go through the same sweep at once. Each takes the runs that nobody else holds; what one of them
failed at, or died of, the others leave alone until the sweep is started again.
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
from carerft.runs.directory import SWEEP, locked, manifests, read_manifest

LOGS = {"train.log", "evaluate.log", ".lock"}
log = logging.getLogger(__name__)


def job_directory(command: str, config: Mapping[str, Any]) -> Path | None:
    """The directory of the run that Hydra has started; None where this process has nothing to do there.

    In a multirun, a run that another experiment has finished already becomes a link to it.
    """
    hydra = HydraConfig.get()
    directory = Path(hydra.runtime.output_dir)
    if hydra.mode != RunMode.MULTIRUN:
        return directory
    if reason := passed_over(directory):
        log.info("%s is left alone: %s", directory, reason)
        return None
    if found := take_over(directory, command, config, Path(hydra.sweep.dir).absolute().parent):
        log.info("%s is done already, as %s: nothing to do", directory, found)
        return None
    return directory


def take_over(directory: Path, command: str, config: Mapping[str, Any], outputs: Path) -> Path | None:
    """Make `directory` a link to a finished run of the same command and configuration in `outputs`.

    Returns the run that it now links to; None where there is none, or where the directory holds something already.
    Nothing is ever deleted through a link: the directory is moved aside first, and holds nothing but a log.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with open(directory.parent / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two processes, the second must see the first's link, and leave it alone
        if directory.is_symlink() or any(file.name not in LOGS for file in directory.glob("*")):
            return None
        found = finished_run(outputs, command, config_hash(config))
        if found is None:
            return None
        if directory.exists():  # moved as it is: whatever turns up in it meanwhile goes with it
            aside = directory.with_name(f".{directory.name}.{os.getpid()}")
            directory.rename(aside)
            shutil.rmtree(aside)
        try:
            directory.symlink_to(os.path.relpath(found, directory.parent))
        except FileExistsError:  # another process has begun there just now
            return None
        return found


def finished_run(outputs: Path, command: str, identity: str) -> Path | None:
    """A finished run with this config hash among `outputs/<experiment>/<cell>/seed=<n>`; the first by path."""
    own = (place for place in sorted(outputs.glob("*/*/seed=*")) if not place.is_symlink())
    for place, manifest in manifests(own):
        if (manifest.get("status"), manifest.get("command")) != ("done", command):
            continue
        if config_hash(manifest["config"]) == identity:  # not the hash it was written with: its rules may have changed
            return place
    return None


def passed_over(directory: Path) -> str | None:
    """Why a process of a sweep leaves this run alone, in words; None where it may take it, or belongs to no sweep."""
    sweep = os.environ.get(SWEEP)
    manifest = read_manifest(directory) if sweep else None
    if manifest is None or manifest["status"] == "done":
        return None
    if locked(directory):
        return "another process is at it"
    if manifest.get("sweep") == sweep:
        return "it failed in this sweep" if manifest["status"] == "failed" else "the process that ran it died"
    return None
