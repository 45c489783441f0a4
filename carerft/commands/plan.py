"""`carerft plan EXPERIMENT ...`: what an experiment will need, before it is paid for.

Left out: how it is computed (`carerft.planning`). Nothing is downloaded, and no model is needed but a local one.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from carerft.errors import ConfigError
from carerft.planning.assumptions import GIB, Hardware, assumptions, hardware
from carerft.planning.estimate import Estimator, Machine, calibrated, machine, wall
from carerft.planning.job import job
from carerft.planning.measured import NEWEST, finished, read
from carerft.planning.memory import Memory
from carerft.planning.remedies import options, remedies
from carerft.planning.seconds import Seconds
from carerft.planning.shapes import Shape, shape_of
from carerft.sweeps.arguments import request
from carerft.sweeps.cells import Cell, cells
from carerft.sweeps.folders import experiments
from carerft.text import duration

USAGE = """usage: carerft plan EXPERIMENT [hardware=NxKIND] [price=USD] [jobs=N] [key=value ...]

Print what an experiment will need before it is run: memory of each device, time of each stage, hours and cost.

experiments: {experiments}

  hardware=8xh100  eight of conf/plan.yaml's h100; kinds: {kinds}; this: the machine that asks
                   (default: this for model=tiny, else h100)
  price=2.5        US dollars per hour for one device, instead of conf/plan.yaml's assumption
  jobs=N           runs side by side (default: as many as there is room for)
  hardware.KIND.. texts.. dynamic.. start_s.. disk=number   any assumption of conf/plan.yaml
  key=value        Hydra's overrides, as for carerft sweep

Where outputs/EXPERIMENT holds finished runs of the model on such hardware, the estimate goes by them. The exit status
is 1 where a run doesn't fit into memory.

examples:
  carerft plan table1
  carerft plan table2 model=qwen2.5-7b hardware=8xh100 price=2.5
  carerft plan table1 model=qwen2.5-3b hardware=h200 texts.math.completion=800"""

OURS = ("hardware.", "texts.", "dynamic.", "start_s.", "disk=")
REHEARSED = 100_000_000  # parameters, at most, of a model that is tried out in a few seconds


def main() -> int:
    """Returns the exit status: 0, or 1 where a run doesn't fit into memory."""
    arguments = sys.argv[1:]
    if not arguments or {"-h", "--help"} & set(arguments):
        kinds = ", ".join(assumptions([])["hardware"])
        print(USAGE.format(experiments=", ".join(experiments()), kinds=kinds))
        return 0
    asked = request("plan", arguments, keys=("hardware", "price"))
    stated = assumptions([text for text in asked.overrides if text.startswith(OURS)])
    overrides = [text for text in asked.overrides if not text.startswith(OURS)]
    usual = "this" if "model=tiny" in overrides else "h100"
    devices = hardware(asked.own.get("hardware", usual), stated)
    price = _price(asked.own["price"]) if "price" in asked.own else devices.price
    console = Console()
    with Console(stderr=True).status(f"composing the runs of {asked.experiment.name}"):
        planned = cells(asked.experiment, overrides, here=devices.here)
    shape = shape_of(planned[0].config["model"]["path"], stated["models"])
    used = _machine(planned, devices, asked.jobs, stated)
    estimator, source = _estimator(planned, used, shape, stated)
    title = f"{asked.experiment.name}: {len(planned)} runs of {planned[0].config['model']['name']} on {devices.title}"
    console.print(Text(title, style="bold"))
    fits = show_memory(planned, estimator, console)
    show_time(planned, estimator, price, fits, console)
    for note in [source, *_notes(planned, estimator, price)]:
        console.print(Text(f"- {note}"))
    return int(not fits)


def _price(given: str) -> float:
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise ConfigError(f"price={given}: must be a number of at least 0", "for example: price=2")
    return value


def _machine(planned: Sequence[Cell], devices: Hardware, side: int | None, stated: dict[str, Any]) -> Machine:
    needed = max(job(cell.config, stated).devices for cell in planned)
    if devices.kind != "cpu" and needed > devices.count:
        raise ConfigError(
            f"a run needs {needed} devices and hardware has {devices.count}: the learner's processes, and "
            "rollout.engines * rollout.tensor_parallel_size for engines beside them",
            f"write hardware={needed}x{devices.kind}, or fewer of them",
        )
    return machine(devices, needed, len(planned), side)


def _estimator(planned: Sequence[Cell], used: Machine, shape: Shape, stated: dict[str, Any]) -> tuple[Estimator, str]:
    """The estimator, and a word on what it goes by."""
    root = planned[0].directory.parents[1]
    places = [manifest.parent for manifest in root.glob("*/seed=*/manifest.json")]
    done = finished(places, used.hardware, planned[0].config["model"]["path"])[:NEWEST]
    if done:
        runs = "run" if len(done) == 1 else "runs"
        estimator = calibrated(shape, used, stated, [read(place) for place in done])
        return estimator, f"judged by the newest {len(done)} finished {runs} in {root}"
    trained = [cell for cell in planned if cell.command == "train" and cell.config["rollout"]["name"] == "transformers"]
    if trained and used.hardware.here and used.hardware.kind == "cpu" and shape.parameters <= REHEARSED:
        with Console(stderr=True).status("trying out a part of a run on this machine"):
            from carerft.planning.rehearsal import rehearse

            found = rehearse(trained[-1].config, used.cores, stated["start_s"]["transformers"])
        estimator = calibrated(shape, used, stated, [found], finished=False)
        return estimator, "judged by a small part of a run, just tried out on this machine; no run is finished yet"
    return calibrated(
        shape, used, stated, []
    ), "computed from conf/plan.yaml alone: no finished run of this model on such hardware was found here"


def show_memory(planned: Sequence[Cell], estimator: Estimator, console: Console) -> bool:
    """Print the memory of the run that needs most, and what helps where it is too much. Returns whether it fits."""
    needs = [(estimator.memory(cell.config), cell) for cell in planned]

    def most(pair: tuple[list[Memory], Cell]) -> tuple[bool, float, int]:
        found, _ = pair
        return any(one.wanting for one in found), max(one.peak / one.limit for one in found), len(found)

    found, cell = max(needs, key=most)
    console.print(Text(f"memory of one device, GiB, of {_kinds(planned)[cell.title]}"))
    table = Table()
    columns = [(one, phase) for one in found for phase in one.phases]
    table.add_column("component")
    for one, phase in columns:
        table.add_column(f"{one.device}\n{phase}", justify="right")
    for name in dict.fromkeys(name for one, phase in columns for name in one.phases[phase]):
        table.add_row(name, *(_gib(one.phases[phase].get(name)) for one, phase in columns))
    table.add_section()
    table.add_row("together", *(_gib(sum(one.phases[phase].values())) for one, phase in columns))
    table.add_row("there is", *(_gib(one.limit) for one, _ in columns))
    console.print(table)
    if all(one.fits for one in found):
        console.print("[green]it fits[/green]" + (", tightly" if any(m.peak > 0.93 * m.limit for m in found) else ""))
        return True
    for line in _shortage(cell, found, estimator):
        console.print(Text(line, style="red" if line.startswith("does not") else ""))
    return False


def _shortage(cell: Cell, found: Sequence[Memory], estimator: Estimator) -> list[str]:
    lines = []
    for one in found:
        if one.wanting:
            lines.append(
                f"does not fit: the engine lacks {_gib(one.wanting)} GiB of its share of the {one.device}'s device: it "
                "starts only if its cache can hold one sequence of the whole context"
            )
        if one.peak > one.limit:
            lines.append(f"does not fit: the {one.device}'s device lacks {_gib(one.peak - one.limit)} GiB")
    hardware = estimator.machine.hardware

    def fits(config: dict[str, Any]) -> bool:
        enough = hardware.kind == "cpu" or estimator.job(config).devices <= hardware.count
        return enough and all(one.fits for one in estimator.memory(config))

    helpful = remedies(cell.config, list(options(estimator.job(cell.config), hardware)), fits)
    for option in helpful:
        lines.append("it would fit with " + " ".join(f"{k}={str(v).lower()}" for k, v in option.items()))
    beyond = ["no setting of carerft's makes it fit here: take devices with more memory, or a smaller model"]
    return lines + ([] if helpful else beyond)


def show_time(planned: Sequence[Cell], estimator: Estimator, price: float, fits: bool, console: Console) -> None:
    """Print the stages of each kind of run, and hours and cost of all."""
    console.print("time, of one run of each kind" + ("" if fits else ", if it did fit"))
    table = Table()
    table.add_column("run", overflow="fold")
    for column in ("runs", "rollouts\na batch", "learning\na step", "training", "evaluation,\nthe rest", "together"):
        table.add_column(column, justify="right", no_wrap=True)
    took: list[float] = []
    names = _kinds(planned)
    kinds: dict[str, tuple[int, Seconds]] = {}
    for cell in planned:
        found = estimator.seconds(cell.config)
        kind = names[cell.title]
        kinds[kind] = kinds.get(kind, (0, found))[0] + 1, found
        took.append(found.total)
    for kind, (runs, found) in kinds.items():
        training = (found.sampling, found.learning, found.training)
        stages = [_short(seconds) if found.steps else "" for seconds in training]
        table.add_row(Text(kind), str(runs), *stages, _short(found.rest), _short(found.total))
    console.print(table)
    machine, places = estimator.machine, {estimator.machine.side: "side by side"}
    if machine.side > 1 and machine.hardware.kind != "cpu":
        places = {1: "one after another", **places}
    for side, words in places.items():
        length = wall(took, side) / 3600
        cost = length * machine.hardware.count * price
        how = f"{side} {words}" if side > 1 else "one after another"
        console.print(
            Text(
                f"all {len(planned)} runs, {how}: {duration(length * 3600)}, about {cost:,.2f} US dollars", style="bold"
            )
        )


def _notes(planned: Sequence[Cell], estimator: Estimator, price: float) -> list[str]:
    hardware, machine = estimator.machine.hardware, estimator.machine
    notes = [
        f"{price:g} US dollars per hour for each of {hardware.count} devices is an assumption: price=... changes it"
    ]
    done = sum(cell.status() == "done" for cell in planned)
    if done:
        notes.append(f"{done} of the {len(planned)} runs are done already; time and cost are those of all")
    if hardware.kind != "cpu":
        notes.append(
            "speeds and memory on a GPU were never measured with carerft: they follow from the data sheet and from "
            "guessed shares of its peak (conf/plan.yaml); be ready for half, or double"
        )
        used = machine.side * max(estimator.job(cell.config).devices for cell in planned)
        if machine.side > 1:
            notes.append(
                "on GPUs, carerft sweep runs one after another by itself; side by side needs a launcher that gives "
                "each run devices of its own, such as hydra/launcher=submitit_slurm"
            )
        if used < hardware.count:
            notes.append(f"{hardware.count - used} of the {hardware.count} devices have nothing to do")
    texts = {name: estimator.stated["texts"].get(name) for name in planned[0].config["benchmark"]}
    lengths = ", ".join(f"{name} {entry['completion']:.0f}" for name, entry in texts.items() if entry)
    trained = next((estimator.job(c.config).completion for c in planned if c.command == "train"), None)
    notes.append(f"tokens of a completion: {f'{trained:.0f} in training, ' if trained else ''}{lengths}")
    return notes


def _kinds(planned: Sequence[Cell]) -> dict[str, str]:
    """For each title, what distinguishes its run from the experiment's others, but for the seed; in short."""
    parts = {cell.title: cell.title.rpartition("/")[0].replace("\\", "").split(",") for cell in planned}
    shared = set.intersection(*(set(parts[cell.title]) for cell in planned if cell.command == "train"))
    return {
        title: "base model" if "base" in given else " ".join(_brief(sorted(set(given) - shared))) or "training"
        for title, given in parts.items()
    }


def _brief(overrides: Sequence[str]) -> list[str]:
    """The choices of groups, then settings by the last part of their names."""
    pairs = [text.partition("=")[::2] for text in overrides]
    settings = [f"{key.rpartition('.')[2]}={value}" for key, value in pairs if "." in key]
    return [value for key, value in pairs if "." not in key] + settings


def _gib(value: float | None) -> str:
    return "" if value is None else f"{value / GIB:,.3f}" if value < GIB else f"{value / GIB:,.1f}"


def _short(seconds: float) -> str:
    """In few letters, for a table: the exact sum stands below it."""
    if seconds < 100:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    sys.exit(main())
