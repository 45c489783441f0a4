"""The runs of all experiments by the hash of their configuration: none of thousands need be read for each look-up."""

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from carerft.config.identity import config_hash
from carerft.runs.directory import manifests, runs_of

SETTLED = 2e9
"""Nanoseconds after which a directory's time tells of every change: some file systems count in whole seconds."""


class RunIndex:
    """The runs of `outputs/*/*/seed=*` that are no links. A manifest is read once, and a directory listed again only
    when it has changed."""

    def __init__(self, outputs: Path):
        self._outputs = str(outputs)
        self._below: dict[str, tuple[int, list[str]]] = {}
        self._inodes: dict[str, int] = {}
        self._unread: set[Path] = set()
        self._by_hash: dict[str, set[Path]] = defaultdict(set)

    def runs(self, identity: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """As `runs_of`, in the order of paths. Their manifests are read again: a run may have ended, or be gone."""
        for experiment in self._directories(self._outputs):
            for cell in self._directories(experiment):
                self._directories(cell, of_runs=True)
        for run, manifest in manifests(list(self._unread)):
            self._by_hash[config_hash(manifest["config"])].add(run)
            self._unread.discard(run)
        return runs_of(identity, (run for run in sorted(self._by_hash[identity]) if not run.is_symlink()))

    def _directories(self, parent: str, of_runs: bool = False) -> list[str]:
        """The directories in this one. of_runs: note those to be read that are new, or another than at their path
        before."""
        try:
            modified = os.stat(parent).st_mtime_ns
            before, found = self._below.get(parent, (None, []))
            if modified == before:
                return found
            with os.scandir(parent) as entries:
                directories = [entry for entry in entries if entry.is_dir()]
        except OSError:  # it is gone, or not ours to read
            return []
        for entry in directories if of_runs else ():
            if self._inodes.get(entry.path) != entry.inode() and entry.name.startswith("seed="):
                self._inodes[entry.path] = entry.inode()
                self._unread.add(Path(entry.path))
        found = [entry.path for entry in directories]
        if time.time_ns() - modified > SETTLED:
            self._below[parent] = modified, found
        return found


@cache
def index(outputs: Path) -> RunIndex:
    """This process's index of a directory, given by its absolute path."""
    return RunIndex(outputs)
