"""Runs the cells of an experiment that are not done in processes of their own: one that crashes ends no other.

Every worker process goes through all commands of the experiment; `carerft.sweeps.sharing` decides which runs it takes.
A worker that died is started again: it skips the run in which it died, and continues with the rest.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from carerft.config.settings import TrainSettings
from carerft.runs.directory import SWEEP, read_manifest
from carerft.runs.reading import read_lines
from carerft.sweeps.cells import Cell
from carerft.terminal import Bar
from carerft.text import duration, line
from carerft.training.launch import PATIENCE_S, starts_processes

OPEN = ("missing", "stopped", "failed", "interrupted")  # statuses of the cells that a sweep has to run when it starts
GRACE = 120.0  # seconds that workers have to save their step after Ctrl-C, where a run is one process


def run(cells: Sequence[Cell], commands: Sequence[Sequence[str]], workers: int, threads: int, console: Console) -> None:
    """Run every cell that is not done, `workers` at a time with `threads` threads each, until none is left to try.

    commands: arguments of `carerft` that together run all cells.
    """
    logs = cells[0].directory.parents[1] / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, SWEEP: uuid.uuid4().hex}
    processes: list[subprocess.Popen[bytes]] = []

    def work(log: Path) -> Iterator[bool]:
        """Run the commands one after another, each as a process with this log; yields True while one runs.

        A command whose process died is repeated: each death costs at most the one cell in which it happened.
        """
        deaths = 0
        with open(log, "ab") as file:
            for command in commands:
                died = True
                while died and deaths <= len(cells) and progress.untried():
                    # In its own session, the process gets Ctrl-C once, from `_stop`, and not also from the terminal.
                    process = subprocess.Popen(
                        [sys.executable, "-m", "carerft", *command],
                        stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                        env=environment, start_new_session=True,
                    )  # fmt: skip
                    processes.append(process)
                    while process.poll() is None:
                        yield True
                    died = process.returncode not in (0, 1, 2)
                    deaths += died

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Bar(console, "") as bar:
        progress = SweepProgress(cells, bar)
        team = [work(logs / f"worker-{n}.log") for n in range(workers)]
        try:
            while any([next(worker, False) for worker in team]):
                time.sleep(1.0)
                progress.update()
        finally:
            several = any(
                isinstance(cell.settings, TrainSettings) and starts_processes(cell.settings.learner) for cell in cells
            )
            _stop(processes, PATIENCE_S if several else GRACE)
            progress.update()


def _stop(processes: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """Interrupt the processes that still run, as Ctrl-C does, and kill those that do not end in time."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + grace
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


class SweepProgress:
    """The status of every cell, read from its directory, as progress bars: one for all cells, one for each running."""

    def __init__(self, cells: Sequence[Cell], bar: Progress):
        self.cells, self._bar = cells, bar
        self._status = {cell.directory: cell.status() for cell in cells}
        self._tried: set[Path] = set()
        self._rows: dict[Path, TaskID] = {}
        self._all = bar.add_task("runs", total=len(cells), shown="")

    def untried(self) -> list[Cell]:
        """The cells that are not done, and that no worker has tried since the sweep was started."""
        return [c for c in self.cells if self._status[c.directory] in OPEN and c.directory not in self._tried]

    def update(self) -> None:
        """Read the directories again, and print which runs have ended."""
        for cell in self.cells:
            before = self._status[cell.directory]
            if before == "done":
                continue
            status = self._status[cell.directory] = cell.status()
            if status == "running":
                self._show(cell)
            elif status != before:
                self._end(cell, status)
        failed = sum(self._status[directory] not in ("done", "running") for directory in self._tried)
        done = list(self._status.values()).count("done")
        self._bar.update(self._all, completed=done, shown=f"{failed} failed" if failed else "")

    def _show(self, cell: Cell) -> None:
        self._tried.add(cell.directory)
        if cell.directory not in self._rows:
            total = getattr(cell.settings, "steps", None)
            self._rows[cell.directory] = self._bar.add_task(f"  {cell.title}", total=total, shown="")
        self._bar.update(self._rows[cell.directory], completed=last_step(cell.directory) or 0)

    def _end(self, cell: Cell, status: str) -> None:
        if cell.directory in self._rows:
            self._bar.remove_task(self._rows.pop(cell.directory))
        self._tried.add(cell.directory)
        if cell.directory.is_symlink():
            note = " (shared with another experiment)"
        else:
            seconds = (read_manifest(cell.directory) or {}).get("seconds")
            note = f" in {duration(seconds)}" if status == "done" else ""
        self._bar.console.print(f"{status:<12}{cell.title}{note}", markup=False, highlight=False)


def last_step(directory: Path) -> int | None:
    """The step of the last complete line of metrics.jsonl; None if there is none."""
    steps = [metrics["step"] for metrics in read_lines(directory / "metrics.jsonl", [])]
    return steps[-1] if steps else None


def failure(cell: Cell) -> str:
    """Why a cell is not done, in one line."""
    status = cell.status()
    if status == "failed":
        return line((read_manifest(cell.directory) or {}).get("error") or "failed", 300)
    reasons = {"missing": "not started", "stopped": "its process died", "running": "another process is running it"}
    return reasons.get(status, status)
