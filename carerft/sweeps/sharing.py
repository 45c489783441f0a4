"""Which runs of a sweep a process takes: none that another process has, and none that is finished elsewhere.

Several processes may go through the same sweep at once. A run that failed, or whose process died, is left alone by all
of them until the sweep is started again. A finished run serves every experiment that contains its configuration.
"""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from carerft.config.identity import config_hash
from carerft.runs.directory import SWEEP, locked, manifests, read_manifest
from carerft.runs.inputs import changed_since, inputs

LOGS = {"train.log", "evaluate.log", ".lock"}
SETTLED = 2e9
"""Nanoseconds after which a directory's time tells of every change: some file systems count in whole seconds."""
log = logging.getLogger(__name__)


class RunIndex:
    """The runs of `outputs/*/*/seed=*` that are no links, by the hash of their configuration. None of thousands need be
    read for each look-up: a manifest is read once, and a directory listed again only when it has changed."""

    def __init__(self, outputs: Path):
        self._outputs = str(outputs)
        self._below: dict[str, tuple[int, list[tuple[str, int]]]] = {}
        self._hashes: dict[tuple[str, int], str] = {}

    def runs(self, identity: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """As `manifests`, in the order of paths, of the runs whose configuration has this hash by today's rules; the
        stored one may be older. Their manifests are read again: a run may have ended, or be gone."""
        cells = [
            cell for experiment, _ in self._directories(self._outputs) for cell, _ in self._directories(experiment)
        ]
        runs = [run for cell in cells for run in self._directories(cell, of_runs=True)]
        unread = {Path(run[0]): run for run in runs if run not in self._hashes}
        for path, manifest in manifests(unread):
            self._hashes[unread[path]] = config_hash(manifest["config"])
        self._hashes = {run: self._hashes[run] for run in runs if run in self._hashes}  # another may come to an inode
        found = manifests(sorted(Path(run[0]) for run in runs if self._hashes.get(run) == identity))
        return (run for run in found if config_hash(run[1]["config"]) == identity)

    def _directories(self, parent: str, of_runs: bool = False) -> list[tuple[str, int]]:
        """Path and inode of the directories in this one: another may come to a path. of_runs: of runs alone."""
        try:
            modified = os.stat(parent).st_mtime_ns
            before, found = self._below.get(parent, (None, []))
            if modified == before:
                return found
            with os.scandir(parent) as entries:
                directories = [entry for entry in entries if entry.is_dir()]
        except OSError:  # it is gone, or not ours to read
            return []
        if of_runs:
            directories = [each for each in directories if each.name.startswith("seed=") and not each.is_symlink()]
        found = [(entry.path, entry.inode()) for entry in directories]
        if time.time_ns() - modified > SETTLED:
            self._below[parent] = modified, found
        return found


index = cache(RunIndex)
"""This process's index of a directory, given by its absolute path."""


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
