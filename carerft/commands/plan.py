"""Print what a training, or each run of an experiment, needs: memory of each device, time of each stage, hours, cost.

usage: carerft plan [EXPERIMENT] [hardware=NxKIND] [key=value ...]

Nothing is downloaded. Finished runs of the model on such hardware, in outputs/, correct the times. The exit status is 1
if a run does not fit into memory; settings with which it would fit are then searched for.

examples:
  carerft plan model=qwen2.5-7b task=gsm8k learner.processes=2 hardware=8xh100
  carerft plan table2 model=qwen2.5-7b hardware=8xh100 price=2.5
  carerft plan table1 model=qwen2.5-3b hardware=h200 texts.math.completion=800
  carerft plan model=./DIRECTORY task=arithmetic scale=small hardware=2xcpu_bfloat16
Any other key=value is one of carerft train, or a number in conf/plan.yaml.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra.utils import instantiate
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from carerft.commands.arguments import argument, read
from carerft.commands.sweep import named_experiment
from carerft.config import choices
from carerft.config.checks import check_choice
from carerft.config.settings import MOST_TOKENS, TaskSettings, TrainSettings
from carerft.errors import ConfigError
from carerft.planning.assumptions import GIB, QUICK_CPU, Assumptions, Device, Hardware, hardware, load
from carerft.planning.job import Job, Measured, file_of, job
from carerft.planning.memory import Memory, memory
from carerft.planning.microbatch import fitted
from carerft.planning.search import search
from carerft.planning.seconds import Seconds, correction, newest, seconds
from carerft.planning.shapes import Shape, shape_of
from carerft.sweeps.cells import cells, compose_training
from carerft.sweeps.composition import composing
from carerft.sweeps.folders import Experiment
from carerft.sweeps.names import labels
from carerft.tasks import Problem
from carerft.terminal import open_console
from carerft.text import duration

CHARACTERS = 4  # a token of English text, about
ASSUMED = ("hardware.", "texts.", "dynamic.", "start_s.", "disk=", "transfer=")


@dataclass
class Plan:
    """The keys of `carerft plan` itself."""

    hardware: str | None = argument("8xh100, or `this` machine; null: this machine for model=tiny, else h100", None)
    price: float | None = argument("US dollars per hour of one device; null: as in conf/plan.yaml", None, least=0)


@dataclass(frozen=True)
class Planner:
    """Plans the runs of one model. device: what each process and engine of a run uses, on a CPU several cores. factors:
    of `carerft.planning.seconds.correction`, by so many finished runs."""

    shape: Shape
    hardware: Hardware
    device: Device
    assumptions: Assumptions
    factors: dict[str, float]
    finished: int

    def memory(self, job: Job) -> Memory:
        return memory(job, self.shape, self.device)

    def fits(self, job: Job) -> bool:
        can = job.learner.precision in self.device.peak and job.devices <= self.hardware.count
        return can and self.memory(job).fits

    def seconds(self, job: Job) -> Seconds:
        return seconds(job, self.shape, self.device, self.assumptions).corrected(self.factors)

    def dollars(self, job: Job) -> float:
        """The price of a run on the devices that it uses."""
        return self.seconds(job).total / 3600 * job.devices * self.hardware.device.price_per_hour


def main() -> int:
    """Returns the exit status: 0, or 1 if a run does not fit into memory."""
    words = sys.argv[1:]
    assumptions = load([word for word in words if word.startswith(ASSUMED)])
    settings, others = read(Plan, [word for word in words if not word.startswith(ASSUMED)], __doc__)
    chosen, overrides = named_experiment(others)
    used = hardware(settings.hardware or ("this" if "model=tiny" in overrides else "h100"), assumptions)
    if settings.price is not None:
        used.device.price_per_hour = settings.price
    gpu, older = not used.cpu, None if "bfloat16" in used.device.peak else used.kind
    machine = choices.Machine(gpu=gpu, vllm=gpu, older=older, quick_cpu=used.kind == QUICK_CPU)
    with open_console(stderr=True).status("composing the runs"), choices.assuming(machine):
        names, trainings, bases = compose_runs(chosen, overrides, used.here)
    if not chosen:
        check_choice(trainings[0], overrides)
    root, console = Path("outputs", chosen.name if chosen else ""), open_console()
    check_benchmarks(trainings)
    lengths = read_lengths(trainings, assumptions, words)
    planner, jobs, side = plan(trainings, used, assumptions, root)
    name = chosen.name if chosen else "carerft train"
    console.print(Text(f"{name}: {trainings[0].model.name} on {used.count} x {used.kind}", "bold"))
    fits = show_memory(planner, names, jobs, console)
    show_time(planner, names, jobs, bases, side, console)
    notes = [f"corrected by the newest {planner.finished} finished runs in {root}"]
    if not planner.finished:
        notes = [f"computed from conf/plan.yaml: {root} has no finished run of this model on such hardware"]
    each = f" for each of {used.count} devices" if used.count > 1 else ""
    notes.append(f"{used.device.price_per_hour:g} US dollars per hour{each} is an assumption: price=... changes it")
    notes += lengths
    tokens = {each.learner.tokens_per_microbatch for each in jobs}
    if used.cpu and (least := min(filter(None, tokens), default=MOST_TOKENS)) < MOST_TOKENS:
        notes.append(f"microbatches of {least:,} tokens, which fit into the memory: learner.tokens_per_microbatch")
    if not used.cpu:
        notes.append("the speed of GPUs was never measured with carerft (conf/plan.yaml): be ready for half, or double")
    console.print(Text("\n".join(f"- {note}" for note in notes)))
    return int(not fits)


def plan(
    trainings: Sequence[TrainSettings], used: Hardware, assumptions: Assumptions, root: Path
) -> tuple[Planner, list[Job], int]:
    """Of trainings of one model: their planner, their jobs, and how many of them run side by side. root: of finished
    runs. Raises ConfigError for a run that needs more devices than there are, and for a model of unknown shape."""
    jobs, model = [job(each, assumptions) for each in trainings], trainings[0].model
    needed, shape = max(job.devices for job in jobs), shape_of(model.path, assumptions.models)
    if needed > used.count:
        raise ConfigError(
            f"a run needs {needed} devices and hardware has {used.count}: learner.processes, and those of engines",
            f"write hardware={needed}x{used.kind}, or lower learner.processes or rollout.engines",
        )
    if used.cpu:
        jobs = [fitted(each, shape, used.device.memory_gib * used.count * GIB) for each in jobs]
    side = min(len(jobs), used.count // needed)
    device = used.device.times(used.count // (side * needed) if used.cpu else 1)
    finished = newest((file.parent for file in root.rglob("manifest.json")), used, model.path)
    factors = correction(finished, shape, used, assumptions)
    return Planner(shape, used, device, assumptions, factors, len(finished)), jobs, side


def read_lengths(trainings: Sequence[TrainSettings], assumptions: Assumptions, words: Sequence[str]) -> list[str]:
    """Count the questions of files of one's own, and take a quarter of the characters of their prompts as tokens, where
    no word says otherwise. Returns a note for each file. Raises DataError for a file with faults."""
    given, notes = {word.partition("=")[0] for word in words}, dict[str, str]()
    named = [(training.task.name, training.task) for training in trainings]
    named += [(name, entry) for training in trainings for name, entry in training.benchmark.items()]
    for name, entry in named:
        if (file := file_of(entry)) is None or file in notes:
            continue
        task = _made(entry)
        lengths = [len(problem.prompt) / CHARACTERS for problem in task.problems()]
        found = {"questions": len(lengths), "prompt": fmean(lengths)}
        found = {key: value for key, value in found.items() if f"texts.{name}.{key}" not in given}
        text = assumptions.texts[file] = replace(assumptions.texts.get(name, assumptions.texts["other"]), **found)
        notes[file] = (
            f"{task.path}: {text.questions:,} questions, prompts of {text.prompt:.0f} tokens ({CHARACTERS} letters), "
            f"completions of {text.completion:.0f}: set these by texts.{name}.prompt=... texts.{name}.completion=..."
        )
    return list(notes.values())


def check_benchmarks(trainings: Sequence[TrainSettings]) -> None:
    """Raises DataError for a benchmark that asks for no answers and has no choices either, which a run would refuse. A
    task of one's own is left to the run. Of published data, which may not be here, TruthfulQA alone has choices."""
    for name, entry in [entry for training in trainings for entry in training.benchmark.items()]:
        if entry.max_tokens or entry._target_.endswith("TruthfulQaTask") or not entry._target_.startswith("carerft."):
            continue
        from carerft.evaluation.measurement import check_choices  # here: it brings torch

        elsewhere = getattr(entry, "path", "") is None
        check_choices([Problem(name, "", None)] if elsewhere else _made(entry).problems(), entry.max_tokens)


def _made(entry: TaskSettings) -> Any:
    return instantiate({key: value for key, value in vars(entry).items() if key not in ("name", "max_tokens")})


def compose_runs(
    chosen: Experiment | None, overrides: Sequence[str], here: bool
) -> tuple[list[str], list[TrainSettings], int]:
    """The labels and settings of an experiment's trainings, and the number of base models that it evaluates. A label
    holds the overrides that not all trainings share, except for the seed. Without an experiment: of the training that
    `carerft train` starts.

    here: whether the runs are to start on this machine, which must then have what they need installed.
    """
    if chosen:
        planned = cells(chosen, overrides, here)
    else:
        with composing():
            planned = [compose_training(overrides, here)]
    trainings = [cell.settings for cell in planned if isinstance(cell.settings, TrainSettings)]
    names = [cell.directory.parts[-2] for cell in planned if cell.command == "train"]
    return labels(names, "the training"), trainings, len(planned) - len(trainings)


def show_memory(planner: Planner, labels: Sequence[str], jobs: Sequence[Job], console: Console) -> bool:
    """Print the memory of the run that needs most and, if it does not fit, settings with which all runs would.
    Returns whether they fit."""
    label, job = max(
        zip(labels, jobs, strict=True), key=lambda pair: (not planner.fits(pair[1]), planner.memory(pair[1]).peak)
    )
    need = planner.memory(job)
    table = Table("component", *(Column(use.replace(", ", "\n"), justify="right") for use in need.uses))
    for name in dict.fromkeys(name for parts in need.uses.values() for name in parts):
        table.add_row(name, *(_gib(parts[name]) if name in parts else "" for parts in need.uses.values()))
    table.add_section()
    table.add_row("together", *(_gib(sum(parts.values())) for parts in need.uses.values()))
    table.add_row("there is", *(_gib(need.limit) for _ in need.uses))
    console.print(Text(f"memory of one device, GiB, of {label}"), table)
    if need.fits:
        console.print("[green]it fits[/green]" + (", tightly" if need.peak > 0.93 * need.limit else ""))
        return True
    if need.peak > need.limit:
        console.print(f"[red]does not fit[/red]: a device lacks {_gib(need.peak - need.limit)} GiB")
    if need.shortage:
        console.print(f"[red]does not fit[/red]: an engine's cache lacks {_gib(need.shortage)} GiB for one sequence")
    solutions = search([job, *jobs], planner.fits, planner.dollars)
    for effect, (changes, cost) in solutions.items():
        text = " ".join(f"{key}={str(value).lower()}" for key, value in changes.items())
        console.print(Text(f"it would fit, with {effect}, for about {cost:,.2f} US dollars a run: {text}"))
    if not solutions:
        console.print("no settings make it fit: take devices with more memory, or a smaller model")
    return False


def show_time(
    planner: Planner, labels: Sequence[str], jobs: Sequence[Job], bases: int, side: int, console: Console
) -> None:
    """Print the times of one run of each label, and time and cost of all. bases: evaluations of base models, each of
    which one process does. side: runs at the same time."""
    headers = ("runs", "rollouts\na batch", "learning\na step", "training", "evaluation,\nthe rest", "together")
    table = Table("run", *(Column(header, justify="right", no_wrap=True) for header in headers))
    alone = jobs[0].with_settings({"learner.processes": 1})
    base = planner.seconds(replace(alone, steps=0, validation=Measured())).rest
    if bases:
        table.add_row("base model", str(bases), "", "", "", duration(base), duration(base))
    times = list(map(planner.seconds, jobs))
    for label, one in dict(zip(labels, times, strict=True)).items():
        sums = map(duration, (one.training, one.rest, one.total))
        table.add_row(Text(label), str(labels.count(label)), f"{one.sampling:.2f} s", f"{one.learning:.2f} s", *sums)
    console.print("time of one run of each kind", table)
    totals, devices = [base] * bases + [one.total for one in times], planner.hardware
    for places in dict.fromkeys((1, side) if not devices.cpu else (side,)):
        total = max(max(totals), sum(totals) / places)
        cost = f"about {total / 3600 * devices.count * devices.device.price_per_hour:,.2f} US dollars"
        how = f"{places} at the same time" if places > 1 else "one after another"
        console.print(Text(f"all runs, {how}: {duration(total)}, {cost}", "bold"))


def _gib(value: float) -> str:
    return f"{value / GIB:,.3f}" if value < GIB else f"{value / GIB:,.1f}"
