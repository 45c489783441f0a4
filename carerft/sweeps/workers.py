"""Runs what is left of an experiment in processes of their own, so that a cell that crashes takes no other with it.

Every worker goes through all commands of the experiment; `carerft.sweeps.sharing` keeps them out of each other's
way. A worker that died is started again: it passes over what it died of, and goes on with the rest.
"""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import TaskID

from carerft.runs.directory import SWEEP, read_manifest
from carerft.sweeps.cells import Cell
from carerft.terminal import progress_bar
from carerft.text import duration, line

OPEN = ("missing", "stopped", "failed", "interrupted")  # what a start of the sweep still has to run
PATIENCE = 120.0  # seconds that workers have to save their step after Ctrl-C


@dataclass
class Worker:
    """A process that goes through the commands, and the log that it writes."""

    number: int
    log: Path
    todo: list[list[str]]
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    written: IO[bytes] | None = None


def run(cells: Sequence[Cell], commands: Sequence[Sequence[str]], workers: int, threads: int, console: Console) -> None:
    """Run every cell that isn't done, `workers` at a time with `threads` threads each; returns when nothing is left to
    try. commands: arguments of `carerft`, which together run all cells."""
    root = cells[0].directory.parents[1]
    (root / "logs").mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, SWEEP: uuid.uuid4().hex}
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    team = [Worker(n, root / "logs" / f"worker-{n}.log", [list(c) for c in commands]) for n in range(workers)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    watch = Watch(cells, console)
    try:
        while any([_advance(worker, watch, environment) for worker in team]):
            time.sleep(1.0)
            watch.look()
    finally:
        _stop(team)
        watch.look()
        watch.close()


def _advance(worker: Worker, watch: "Watch", environment: dict[str, str]) -> bool:
    """Start the worker's next command where its last one has ended. False where it has none left."""
    if worker.process is not None:
        status = worker.process.poll()
        if status is None:
            return True
        worker.process = None
        died = status not in (0, 1, 2)
        # A death costs at most the one cell that it happened in.
        if died and watch.open_cells() and worker.restarts < len(watch.cells):
            worker.restarts += 1
        else:
            worker.todo.pop(0)
    if not worker.todo or not watch.open_cells():
        return False
    worker.written = worker.written or open(worker.log, "ab")  # noqa: SIM115 - as long as the worker
    # A session of its own: Ctrl-C reaches it once, through us.
    worker.process = subprocess.Popen(
        [sys.executable, "-m", "carerft", *worker.todo[0]],
        stdin=subprocess.DEVNULL, stdout=worker.written, stderr=subprocess.STDOUT,
        env=environment, start_new_session=True,
    )  # fmt: skip
    return True


def _stop(team: Sequence[Worker]) -> None:
    """End what still runs: as Ctrl-C does, and after a while by force."""
    left = [worker.process for worker in team if worker.process is not None and worker.process.poll() is None]
    for process in left:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + PATIENCE
    for process in left:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    for worker in team:
        if worker.written:
            worker.written.close()


class Watch:
    """What the cells' directories say, as a progress bar: one line for all, one for each that runs."""

    def __init__(self, cells: Sequence[Cell], console: Console):
        self.cells = list(cells)
        self._console, self._bar = console, progress_bar(console, "")
        self._known = {cell.directory: cell.status() for cell in cells}
        self._tried: set[Path] = set()
        self._rows: dict[Path, TaskID] = {}
        self._bar.start()
        self._all = self._bar.add_task("runs", total=len(cells), completed=self._count("done"), shown="")

    def _count(self, status: str) -> int:
        return sum(found == status for found in self._known.values())

    def open_cells(self) -> list[Cell]:
        """Those that are not done, and that no worker has tried since the sweep was started."""
        return [c for c in self.cells if self._known[c.directory] in OPEN and c.directory not in self._tried]

    def look(self) -> None:
        """Read the directories again, and say what has ended."""
        for cell in self.cells:
            before = self._known[cell.directory]
            if before == "done":
                continue
            now = self._known[cell.directory] = cell.status()
            if now == "running":
                self._show(cell)
            elif now != before:
                self._end(cell, now)
        self._bar.update(self._all, completed=self._count("done"), shown=self._failures())

    def _failures(self) -> str:
        failed = sum(self._known[place] != "done" for place in self._tried - self._running())
        return f"{failed} failed" if failed else ""

    def _running(self) -> set[Path]:
        return {place for place, status in self._known.items() if status == "running"}

    def _show(self, cell: Cell) -> None:
        self._tried.add(cell.directory)
        if cell.directory not in self._rows:
            total = getattr(cell.settings, "steps", None)
            self._rows[cell.directory] = self._bar.add_task(f"  {cell.title}", total=total, shown="")
        step = last_step(cell.directory)
        self._bar.update(self._rows[cell.directory], completed=step or 0)

    def _end(self, cell: Cell, status: str) -> None:
        if cell.directory in self._rows:
            self._bar.remove_task(self._rows.pop(cell.directory))
        self._tried.add(cell.directory)
        manifest = read_manifest(cell.directory) or {}
        taken = f" in {duration(manifest.get('seconds'))}" if status == "done" else ""
        shared = " (shared with another experiment)" if cell.directory.is_symlink() else taken
        self._console.print(f"{status:<12}{cell.title}{shared}", markup=False, highlight=False)

    def close(self) -> None:
        self._bar.stop()


def last_step(directory: Path) -> int | None:
    """The last step in metrics.jsonl; None where there is none yet."""
    try:
        with open(directory / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            lines = file.read().splitlines()
    except OSError:
        return None
    for text in reversed(lines):
        try:
            return int(json.loads(text)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return None


def failure(cell: Cell) -> str:
    """Why a cell is not done, in a line."""
    status = cell.status()
    manifest = read_manifest(cell.directory) or {}
    if status == "failed":
        return line(manifest.get("error") or "failed", 300)
    return {"missing": "not started", "stopped": "its process died", "running": "another process is at it"}.get(
        status, status
    )
