"""Run an experiment: every cell of its sweeps, and an evaluation of each base model.

usage: carerft sweep EXPERIMENT [--dry-run] [jobs=N] [key=value ...]

The same command, started again, skips the cells that are done, continues those that were stopped, and repeats those
that failed. A run that another experiment has finished is shared with it. Without a launcher of Hydra's, cells run side
by side in processes on this machine; with one (joblib, submitit_slurm, ray), one process hands all of them to it.

examples:
  carerft sweep table1 model=tiny
  carerft sweep table1 model=qwen2.5-3b hydra/launcher=submitit_slurm hydra.launcher.partition=gpu
  carerft sweep beta_sweep seed=0 --dry-run
The same without base models, in one process: carerft train -m experiment=table1 model=tiny
Any other key=value is an override of Hydra's for all cells, or replaces an axis: seed=0, algorithm=grpo,dapo
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from carerft.commands.arguments import argument, read
from carerft.config.gpus import hidden
from carerft.errors import ConfigError
from carerft.runs.directory import read_manifest
from carerft.sweeps.cells import Cell, cells, check_inputs
from carerft.sweeps.folders import Experiment, experiment, experiments
from carerft.sweeps.names import labels
from carerft.sweeps.workers import OPEN, failure, last_step, run
from carerft.terminal import open_console
from carerft.text import duration, visible

MOST_LISTED = 12
CLUSTERS = ("hydra/launcher=submitit_slurm", "hydra/launcher=ray")  # whose runs start on other machines


@dataclass
class Sweep:
    """The keys of `carerft sweep` itself."""

    dry_run: bool = argument("list the cells, which of them are done, and how long the rest may take", False)
    jobs: int | None = argument("cells run at the same time; null: one per core, 1 beside a GPU", None, least=1)


def main() -> int:
    """Returns the exit status: 0 if every cell is done, else 1. Raises ConfigError for wrong words."""
    settings, words = read(Sweep, sys.argv[1:] or ["--help"], f"{__doc__}\nexperiments:\n{_listing()}")
    chosen, overrides = named_experiment(words)
    if chosen is None:
        raise ConfigError("no experiment was named", "name one, as in: carerft sweep table1")
    console = open_console(stderr=True)
    with console.status(f"composing the cells of {chosen.name}"):
        # Cells can be listed, or handed to a cluster, on a machine that lacks what they need: packages, or a GPU.
        elsewhere = any(word.startswith(CLUSTERS) for word in overrides)
        planned = cells(chosen, overrides, here=not (settings.dry_run or elsewhere))
        check_inputs(planned)
    workers = min(settings.jobs or _workers(overrides), len(planned))
    if settings.dry_run:
        show(planned, workers, open_console())
        return 0
    run(planned, commands(chosen, planned, overrides), workers, max(1, (os.cpu_count() or 1) // workers), console)
    return summarize(chosen, planned, console)


def _listing() -> str:
    """Every experiment with the first comment of its file."""
    files = {experiment.name: experiment.sweeps[experiment.name] for experiment in experiments().values()}
    return "\n".join(f"  {name:<14}{file.read_text().splitlines()[0].lstrip('# ')}" for name, file in files.items())


def named_experiment(words: Sequence[str]) -> tuple[Experiment | None, list[str]]:
    """The experiment that the words name, if any, and Hydra's overrides among them: without `model=`, with the tiny
    model, unless the experiment names one. Raises ConfigError: more than one name, or no such experiment.
    """
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise ConfigError(f"{len(names)} experiments were named", f"name one, such as {names[0]}")
    overrides = [word for word in words if "=" in word]
    named = experiment(names[0]) if names else None
    given = any(word.startswith("model=") for word in overrides) or (named is not None and named.names_model)
    return named, overrides if given else ["model=tiny", *overrides]


def _workers(overrides: Sequence[str]) -> int:
    """The default of `jobs`."""
    if any(text.startswith("hydra/launcher=") for text in overrides):
        return 1
    gpu = shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0
    return 1 if gpu and not hidden() else os.cpu_count() or 1


def commands(experiment: Experiment, planned: Sequence[Cell], overrides: Sequence[str]) -> list[list[str]]:
    """Arguments of `carerft` that together run all cells: an evaluation of each base model, then Hydra's multiruns."""
    launcher = [text for text in overrides if text.startswith(("hydra/launcher=", "hydra.launcher."))]
    bases = [["evaluate", "-m", *cell.overrides, *launcher] for cell in planned if cell.command == "evaluate"]
    sweeps = experiment.overridden(overrides).items()
    return bases + [["train", "-m", f"experiment={sweep}", *words] for sweep, words in sweeps]


def show(planned: Sequence[Cell], workers: int, console: Console) -> None:
    """Print the status of each cell, and how long the rest may take, judging by the mean time of finished trainings."""
    table = Table(Column("run", overflow="fold"), "status", "step", "took")
    statuses, seconds = [cell.status() for cell in planned], []
    titles: dict[Path, str] = {}
    for command, alone in (("evaluate", "base model"), ("train", "the training")):
        own = [cell.directory for cell in planned if cell.command == command]
        titles |= zip(own, labels([directory.parts[-2] for directory in own], alone), strict=True)
    for cell, status in zip(planned, statuses, strict=True):
        took = (read_manifest(cell.directory) or {}).get("seconds") if status == "done" else None
        if took and cell.command == "train":
            seconds.append(took)
        step = last_step(cell.directory) if status not in ("done", "missing") else None
        shared = " (shared)" if cell.directory.is_symlink() else ""
        table.add_row(
            Text(f"{titles[cell.directory]} {cell.directory.name}"),
            status + shared,
            str(step or ""),
            duration(took) if took else "",
        )
    console.print(table)
    remaining = sum(status in OPEN for status in statuses)
    console.print(f"{statuses.count('done')} of {len(planned)} runs are done, {remaining} are left", highlight=False)
    if remaining and seconds:
        estimate = remaining * sum(seconds) / len(seconds) / workers
        console.print(f"about {duration(estimate)} with jobs={workers}, judging by {len(seconds)} that are done")
    elif remaining:
        console.print("how long they take is known once one of them is done; carerft plan estimates it")


def summarize(experiment: Experiment, planned: Sequence[Cell], console: Console) -> int:
    """Print which cells are not done and why. Returns the exit status."""
    unfinished = [cell for cell in planned if cell.status() != "done"]
    console.print(f"{len(planned) - len(unfinished)} of {len(planned)} runs are done", highlight=False)
    for cell in unfinished[:MOST_LISTED]:
        console.print(Text(f"not done: {cell.directory}: {failure(cell)}"), soft_wrap=True)
    if len(unfinished) > MOST_LISTED:
        more = len(unfinished) - MOST_LISTED
        console.print(f"and {more} more: see carerft sweep {experiment.name} --dry-run")
    if unfinished:
        logs = planned[0].directory.parents[1] / "logs"
        first = logs / "worker-0.log"
        if all(cell.status() == "missing" for cell in unfinished) and first.exists():  # no run wrote down an error
            lines = first.read_text(encoding="utf-8", errors="replace").splitlines()
            console.print(Text(visible("\n".join(lines[-10:]), 4000)), soft_wrap=True)
        console.print(f"logs: {logs}; the same command continues", highlight=False)
    for name in dict.fromkeys(cell.settings.model.name for cell in planned):
        command = shlex.join(["carerft", "report", experiment.name, f"model={name}"])
        console.print(Text(f"compare them: {command}"), soft_wrap=True)
    return int(bool(unfinished))
