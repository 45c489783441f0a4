"""`carerft sweep EXPERIMENT ...`: run what is left of a table, a figure or an ablation.

Left out: what a run does (`carerft train`, `carerft evaluate`), and how Hydra launches several. Without a launcher of
Hydra's, cells run side by side in worker processes here; with one (`hydra/launcher=joblib`, `submitit_slurm`, `ray`),
a single worker hands them to it.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from carerft.runs.directory import read_manifest
from carerft.sweeps.arguments import request
from carerft.sweeps.cells import Cell, cells
from carerft.sweeps.folders import Experiment, experiments
from carerft.sweeps.workers import OPEN, failure, last_step, run
from carerft.text import duration, visible

MOST_LISTED = 12
USAGE = """usage: carerft sweep EXPERIMENT [--dry-run] [jobs=N] [key=value ...]

Run an experiment: every cell of its sweep, and each base model once. Started again, it skips what is done, continues
what was stopped, and repeats what failed. A run that another experiment has done already is shared with it.

experiments:
{experiments}

  --dry-run   list the runs, what is done, and how long the rest may take
  jobs=N      runs side by side (default: one per core; beside a GPU, one after another)
  key=value   Hydra's overrides, for all runs; axes too, as in seed=0 or algorithm=grpo,dapo

examples:
  carerft sweep table1 model=tiny
  carerft sweep table1 model=qwen2.5-3b hydra/launcher=submitit_slurm hydra.launcher.partition=gpu
  carerft sweep beta_sweep seed=0 --dry-run
The same without base models, in one process: carerft train -m experiment=table1 model=tiny"""


def main() -> int:
    """Returns the exit status: 0 where every run is done, else 1."""
    arguments = sys.argv[1:]
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE.format(experiments=_listing()))
        return 0
    asked = request("sweep", arguments, flags=("--dry-run",))
    found, overrides = asked.experiment, asked.overrides
    console = Console(stderr=True)
    dry = "--dry-run" in arguments
    with console.status(f"composing the runs of {found.name}"):
        planned = cells(found, overrides, here=not dry)  # a list can be had where nothing is installed
    workers = min(asked.jobs or _workers(overrides), len(planned))
    if dry:
        show(planned, workers, Console())
        return 0
    run(planned, commands(found, planned, overrides), workers, max(1, (os.cpu_count() or 1) // workers), console)
    return summarize(found, planned, console)


def last_lines(log: Path, count: int = 10) -> str:
    """The end of a worker's log, made visible."""
    try:
        return visible("\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]), 4000)
    except OSError:
        return ""


def _listing() -> str:
    first = {name: found.sweeps[name].read_text().splitlines()[0].lstrip("# ") for name, found in experiments().items()}
    return "\n".join(f"  {name:<14}{text}" for name, text in first.items())


def _workers(overrides: Sequence[str]) -> int:
    """How many runs go side by side where `jobs` doesn't say."""
    if any(text.startswith("hydra/launcher=") for text in overrides):
        return 1
    gpu = shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0
    return 1 if gpu else os.cpu_count() or 1


def commands(experiment: Experiment, planned: Sequence[Cell], overrides: Sequence[str]) -> list[list[str]]:
    """Arguments of `carerft` that together run all cells: an evaluation for each base model, then Hydra's multiruns."""
    launcher = [text for text in overrides if text.startswith(("hydra/launcher=", "hydra.launcher."))]
    bases = [["evaluate", "-m", *c.overrides, *launcher] for c in planned if c.command == "evaluate"]
    of = experiment.overrides_of
    return bases + [["train", "-m", f"experiment={sweep}", *of(sweep, overrides)] for sweep in experiment.sweeps]


def show(planned: Sequence[Cell], workers: int, console: Console) -> None:
    """Print where each run stands, and how long the rest may take, judging by those that are done."""
    table = Table(Column("run", overflow="fold"), "status", "step", "took")
    took, left, done = [], 0, 0
    for cell in planned:
        status = cell.status()
        seconds = (read_manifest(cell.directory) or {}).get("seconds") if status == "done" else None
        if seconds and cell.command == "train":
            took.append(seconds)
        left += status in OPEN
        done += status == "done"
        step = last_step(cell.directory) if status not in ("done", "missing") else None
        shared = " (shared)" if cell.directory.is_symlink() else ""
        table.add_row(Text(cell.title), status + shared, str(step or ""), duration(seconds) if seconds else "")
    console.print(table)
    console.print(f"{done} of {len(planned)} runs are done, {left} are left", highlight=False)
    if left and took:
        guess = left * sum(took) / len(took) / workers
        console.print(f"about {duration(guess)} with jobs={workers}, judging by {len(took)} that are done")
    elif left:
        console.print("how long they take is known once one of them is done; carerft plan estimates it")


def summarize(experiment: Experiment, planned: Sequence[Cell], console: Console) -> int:
    """Say what is not done and why. Returns the exit status."""
    missing = [cell for cell in planned if cell.status() != "done"]
    console.print(f"{len(planned) - len(missing)} of {len(planned)} runs are done", highlight=False)
    for cell in missing[:MOST_LISTED]:
        console.print(Text(f"not done: {cell.directory}: {failure(cell)}"), soft_wrap=True)
    if len(missing) > MOST_LISTED:
        console.print(f"and {len(missing) - MOST_LISTED} more: see carerft sweep {experiment.name} --dry-run")
    if missing:
        logs = planned[0].directory.parents[1] / "logs"
        if all(cell.status() == "missing" for cell in missing):  # no run got as far as to say why itself
            console.print(Text(last_lines(logs / "worker-0.log")), soft_wrap=True)
        console.print(f"logs: {logs}; the same command continues", highlight=False)
    console.print(f"compare them: carerft report {experiment.name}", highlight=False)
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
