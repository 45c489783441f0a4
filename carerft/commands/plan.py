"""Print what a training, or each run of an experiment, needs: memory of each device, time of each stage, hours, cost.

usage: carerft plan [EXPERIMENT] [hardware=NxKIND] [key=value ...]

Nothing is downloaded. Finished runs of the model on such hardware, in outputs/, correct the times. The exit status is 1
if a run does not fit into memory; settings with which it would fit are then searched for.

examples:
  carerft plan model=qwen2.5-7b task=gsm8k learner.processes=2 hardware=8xh100
  carerft plan table2 model=qwen2.5-7b hardware=8xh100 price=2.5
  carerft plan table1 model=qwen2.5-3b hardware=h200 texts.math.completion=800
Any other key=value is one of carerft train, or a number in conf/plan.yaml.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra import compose
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from carerft.commands.arguments import argument, read
from carerft.config.checks import check_train
from carerft.config.composition import plain, train_settings
from carerft.config.settings import TrainSettings
from carerft.errors import ConfigError
from carerft.planning import assumptions, measured
from carerft.planning.assumptions import GIB
from carerft.planning.job import Job, job
from carerft.planning.memory import Memory, memory
from carerft.planning.search import search
from carerft.planning.seconds import Seconds, seconds
from carerft.planning.shapes import shape_of
from carerft.sweeps.cells import cells
from carerft.sweeps.composition import composing
from carerft.sweeps.folders import experiment
from carerft.text import duration

ASSUMED = ("hardware.", "texts.", "dynamic.", "start_s.", "disk=")


@dataclass
class Plan:
    """The keys of `carerft plan` itself."""

    hardware: str | None = argument("8xh100, or `this` machine; null: this machine for model=tiny, else h100", None)
    price: float | None = argument("US dollars per hour of one device; null: as in conf/plan.yaml", None)


def main() -> int:
    """Returns the exit status: 0, or 1 if a run does not fit into memory."""
    words = sys.argv[1:]
    stated = assumptions.load([word for word in words if word.startswith(ASSUMED)])
    settings, others = read(Plan, [word for word in words if not word.startswith(ASSUMED)], __doc__)
    names, overrides = [word for word in others if "=" not in word], [word for word in others if "=" in word]
    tiny = not any(word.startswith("model=") and word != "model=tiny" for word in overrides)
    hardware = assumptions.hardware(settings.hardware or ("this" if tiny else "h100"), stated)
    price = hardware.device.price_per_hour if settings.price is None else settings.price
    with Console(stderr=True).status("composing the runs"):
        labels, trainings, bases = _compose(names, ["model=tiny", *overrides] if tiny else overrides, hardware.here)
    jobs, model = [job(each, stated) for each in trainings], trainings[0].model
    needed, shape = max(job.devices for job in jobs), shape_of(model.path, stated.models)
    if needed > hardware.count:
        raise ConfigError(
            f"a run needs {needed} devices and hardware has {hardware.count}: learner.processes, and those of engines",
            f"write hardware={needed}x{hardware.kind}, or lower learner.processes or rollout.engines",
        )
    side = min(len(jobs), hardware.count // needed)
    device = hardware.device.times(hardware.count // (side * needed) if hardware.kind == "cpu" else 1)
    root = Path("outputs", *names)
    finished = measured.newest((file.parent for file in root.rglob("manifest.json")), hardware, model.path)
    factors = measured.correction(finished, shape, hardware, stated)

    def times(job: Job) -> Seconds:
        return seconds(job, shape, device, stated).corrected(factors)

    def dollars(job: Job) -> float:
        return times(job).total / 3600 * job.devices * price

    def fits(job: Job) -> bool:
        return job.devices <= hardware.count and memory(job, shape, device).fits

    console = Console()

    def show(line: str, style: str = "") -> None:
        console.print(Text(line, style))

    show(f"{' '.join(names) or 'carerft train'}: {model.name} on {hardware.count} x {hardware.kind}", "bold")
    needs = [memory(job, shape, device) for job in jobs]
    worst = max(range(len(jobs)), key=lambda i: (not needs[i].fits, needs[i].peak))
    need = needs[worst]
    show(f"memory of one device, GiB, of {labels[worst]}")
    console.print(memory_table(need))
    if need.fits:
        show("it fits" + (", tightly" if need.peak > 0.93 * need.limit else ""), "green")
    else:
        if need.peak > need.limit:
            show(f"does not fit: a device lacks {_gib(need.peak - need.limit)} GiB", "red")
        if need.shortage:
            show(f"does not fit: an engine's cache lacks {_gib(need.shortage)} GiB for one sequence", "red")
        solutions = search(jobs[worst], fits, dollars)
        for effect, changes in solutions.items():
            text = " ".join(f"{key}={str(value).lower()}" for key, value in changes.items())
            cost = dollars(jobs[worst].with_settings(changes))
            show(f"it would fit, with {effect}, for about {cost:,.2f} US dollars a run: {text}")
        if not solutions:
            show("no settings make it fit: take devices with more memory, or a smaller model")
    show("time of one run of each kind" + ("" if need.fits else ", if it did fit"))
    base = times(replace(jobs[0].with_settings({"learner.processes": 1}), steps=0)).rest
    console.print(time_table(list(zip(labels, map(times, jobs), strict=True)), base, bases))
    totals = [base] * bases + [times(job).total for job in jobs]
    for places in dict.fromkeys((1, side) if hardware.kind != "cpu" else (side,)):
        total = max(max(totals), sum(totals) / places)
        how = f"{places} at the same time" if places > 1 else "one after another"
        cost = total / 3600 * hardware.count * price
        show(f"all runs, {how}: {duration(total)}, about {cost:,.2f} US dollars", "bold")
    if finished:
        show(f"- corrected by the newest {len(finished)} finished runs in {root}")
    else:
        show(f"- computed from conf/plan.yaml: {root} has no finished run of this model on such hardware")
    show(f"- {price:g} US dollars per hour for each of {hardware.count} devices is an assumption: price=... changes it")
    if hardware.kind != "cpu":
        show("- the speed of GPUs was never measured with carerft (conf/plan.yaml): be ready for half, or double")
    return int(not need.fits)


def _compose(names: Sequence[str], overrides: Sequence[str], here: bool) -> tuple[list[str], list[TrainSettings], int]:
    """The labels and settings of an experiment's trainings, and the number of base models that it evaluates. A
    label holds the settings that not all of them share, except for the seed. Without the name of an experiment: of the
    training that `carerft train` starts.

    here: whether the runs are to start on this machine, which must then have what they need installed.
    """
    if not names:
        with composing():
            settings = train_settings(plain(compose("train", list(overrides))))
        check_train(settings, here)
        return ["the training"], [settings], 0
    if len(names) > 1:
        raise ConfigError(f"{' '.join(names)}: only one experiment can be planned", "as in: carerft plan table1")
    planned = cells(experiment(names[0]), overrides, here)
    trainings = [cell for cell in planned if cell.command == "train"]
    parts = [cell.directory.parent.name.replace("\\", "").split(",") for cell in trainings]
    shared = set.intersection(*map(set, parts))
    labels = [" ".join(text for text in part if text not in shared) or "training" for part in parts]
    return labels, [cell.settings for cell in trainings], len(planned) - len(trainings)


def memory_table(memory: Memory) -> Table:
    """One row for each component, one column for each use of a device."""
    table = Table("component", *(Column(use.replace(", ", "\n"), justify="right") for use in memory.uses))
    for name in dict.fromkeys(name for parts in memory.uses.values() for name in parts):
        table.add_row(name, *(_gib(parts[name]) if name in parts else "" for parts in memory.uses.values()))
    table.add_section()
    table.add_row("together", *(_gib(sum(parts.values())) for parts in memory.uses.values()))
    table.add_row("there is", *(_gib(memory.limit) for _ in memory.uses))
    return table


def time_table(runs: Sequence[tuple[str, Seconds]], base: float, bases: int) -> Table:
    """One row for each label, with the times of its last run. base: seconds to evaluate one of `bases` base models."""
    headers = ("runs", "rollouts\na batch", "learning\na step", "training", "evaluation,\nthe rest", "together")
    table = Table("run", *(Column(header, justify="right", no_wrap=True) for header in headers))
    if bases:
        table.add_row("base model", str(bases), "", "", "", duration(base), duration(base))
    count = Counter(label for label, _ in runs)
    for label, times in dict(runs).items():
        steps = (f"{times.sampling:.2f} s", f"{times.learning:.2f} s")
        sums = map(duration, (times.training, times.rest, times.total))
        table.add_row(Text(label), str(count[label]), *steps, *sums)
    return table


def _gib(value: float) -> str:
    return f"{value / GIB:,.3f}" if value < GIB else f"{value / GIB:,.1f}"


if __name__ == "__main__":
    sys.exit(main())
