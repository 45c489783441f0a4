"""The learner alone: speed, utilisation and memory of its steps at Qwen2.5's shapes, beside TRL's.

    python benchmarks/speed/learner.py [--shape 3b] [--penalties none,k3,exact] [--trl-python PATH/bin/python]

A model of the shape, with random weights, takes optimizer steps on invented rollouts: random tokens, 8 completions a
prompt, prompts around 150 tokens, completions log-normal around 600 and cut at 3,072. It samples and downloads nothing.
Each system runs in a process of its own, one after another:

- carerft without a penalty (hence without a reference), with SRKL's k3 estimate, and with the exact SRKL;
- TRL's GRPOTrainer on the same rollouts, without KL and with its k3, with the same shape, precision, checkpointing and
  tokens in a microbatch; `learner_trl.py` says which parts are TRL's.

tokens/s counts the same tokens for all systems: those of the completions, and each prompt once. Utilisation is the
useful operations per second, by the formula below the table, over a GPU's data sheet (MFU), and over the speed of a
bare matrix product in the same precision, measured in the same process before and after the steps; for a CPU only the
second.

**Memory** by component: weights, reference, gradients and Adam's moments are the sizes of the tensors; "the rest"
(activations, the head, autocast's copies) is the peak less those. On CUDA the peak is the allocator's. On a CPU it is
the peak of the resident set by the kernel's count (Linux), less what the process held before the model; it includes
fragmentation. **Stages** are those of one further step, in which the clock waits for the device before and after each
stage. GB are 1e9 bytes.

If a complete step doesn't fit into the device's memory, the gradient alone is measured, or else forward passes; the
table says which.
Measure on an idle machine.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from launch import device_named, how_to_get_trl, load_average, make_console, make_table, run
from learner_ours import LEARNING_RATE, PENALTIES, DoesNotFitError, measure
from learner_work import CONFIGS, FORMULA, MODES, Work, peak_flops, real_tokens, useful_flops
from measuring import BETA
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

OURS = {"none": "carerft, no penalty", "k3": "carerft, k3", "exact": "carerft, exact SRKL"}
TRL = {"trl-none": ("TRL, no KL", 0.0), "trl-k3": ("TRL, k3", BETA)}
NAMES = OURS | {system: name for system, (name, _) in TRL.items()}
BASE = {"none": "trl-none", "k3": "trl-k3", "exact": "trl-k3"}
COMPONENTS = ("weights", "reference", "gradients", "moments", "the rest")


def ours(work: Work, penalty: str) -> tuple[dict[str, Any] | None, list[str]]:
    """The measurement of the first of MODES that fits into memory, and why those before it do not."""
    reasons = []
    for mode in MODES:
        spec = {"work": asdict(work), "penalty": penalty, "mode": mode}
        measurement = run([sys.executable, __file__, "--measure", json.dumps(spec)], work.threads)
        if "why_not" not in measurement:
            return measurement, reasons
        reasons.append(measurement["why_not"])
        if measurement["why_not"].startswith("failed"):
            break
    return None, reasons


def trl(work: Work, beta: float, python: str) -> tuple[dict[str, Any] | None, list[str]]:
    """As `ours`, of a complete step of TRL's."""
    rollouts = work.rollouts()
    rewards = torch.rand(work.sequences, generator=torch.Generator().manual_seed(work.seed))
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "rollouts.pt"
        torch.save({**vars(rollouts), "advantages": rewards - 0.5}, file)
        spec = {"work": asdict(work), "config": work.config, "rollouts": str(file), "beta": beta}
        spec["learning_rate"] = LEARNING_RATE
        script = str(Path(__file__).with_name("learner_trl.py"))
        measurement = run([python, script, json.dumps(spec)], work.threads)
    if "why_not" in measurement:
        return None, [measurement["why_not"]]
    flops = useful_flops(work.sizes, rollouts, 3 + (beta > 0))
    counts = {"real_tokens": real_tokens(rollouts), "completion_tokens": int(rollouts.lengths.sum())}
    return {"mode": "step", "useful_flops": flops, **counts, **measurement}, []


def row(measurement: dict[str, Any], peak: float | None) -> dict[str, Any]:
    """The numbers of a system. peak: the data sheet's operations per second."""
    time, rate = statistics.median(measurement["seconds"]), statistics.median(measurement["matmul_flops"])
    read = measurement["read_tokens"]
    resident, most = measurement.get("resident_bytes"), measurement["peak_bytes"]
    memory = resident and most and {**resident, "the rest": most - sum(resident.values())}
    return {
        "mode": measurement["mode"],
        "step_s": time,
        "cpu_s": statistics.median(measurement["cpu_seconds"]),
        "tokens_per_s": measurement["real_tokens"] / time,
        "completion_tokens_per_s": measurement["completion_tokens"] / time,
        # A completion's last token is not read, so that a learner without padding reads fewer than all real tokens.
        "padding": max(0.0, 1 - measurement["real_tokens"] / read) if read else None,
        "flops_per_s": measurement["useful_flops"] / time,
        "mfu": peak and measurement["useful_flops"] / time / peak,
        "of_matmul": measurement["useful_flops"] / time / rate,
        "peak_gb": most and most / 1e9,
        "memory_gb": memory and {name: size / 1e9 for name, size in memory.items()},
        "measured": measurement,
    }


def speeds(title: str, rows: dict[str, dict[str, Any]], mfu: bool, against_trl: bool) -> Table:
    """Speed, utilisation and peak of each system. mfu: whether the device's peak is known; else CPU seconds."""
    columns = ["", "s/step", *([] if mfu else ["CPU s"]), "tokens/s", *(["x TRL"] if against_trl else []), "TFLOP/s"]
    columns += [*(["MFU"] if mfu else []), "of matmul", "not real", "peak, GB"]
    table = make_table(title, columns)
    for system, one in rows.items():
        name = NAMES[system] + ("" if one["mode"] == "step" else f": {MODES[one['mode']]}")
        cells = [f"{one['step_s']:.3g}", *([] if mfu else [f"{one['cpu_s']:.3g}"]), f"{one['tokens_per_s']:,.0f}"]
        if against_trl:
            base = rows.get(BASE.get(system, ""))
            comparable = base and one["mode"] == base["mode"]
            cells.append(f"{one['tokens_per_s'] / base['tokens_per_s']:.2f}" if comparable else "")
        cells += [f"{one['flops_per_s'] / 1e12:.3g}", *([f"{one['mfu']:.1%}"] if mfu else [])]
        cells += [f"{one['of_matmul']:.1%}", "" if one["padding"] is None else f"{one['padding']:.0%}"]
        table.add_row(name, *cells, "" if one["peak_gb"] is None else f"{one['peak_gb']:.2f}")
    caption = '"not real": share of the tokens read that are padding, or a prompt read again.'
    table.caption = caption + (" x TRL: k3 and exact over TRL's k3." if against_trl else "")
    return table


def breakdown(rows: dict[str, dict[str, Any]]) -> list[Table]:
    """Memory by component and time by stage, of our systems."""
    memory = make_table("Peak memory, GB", ["", *COMPONENTS])
    names = {name: None for one in rows.values() for name in one["measured"].get("stages", {}) if name != "rest"}
    time = make_table("Time by stage, seconds of one step", ["", *names, "rest"])
    for system, one in rows.items():
        if one["memory_gb"]:
            memory.add_row(NAMES[system], *(f"{one['memory_gb'][name]:.3f}" for name in COMPONENTS))
        if stages := one["measured"].get("stages"):
            cells = (f"{stages[name]:.3g}" if name in stages else "" for name in (*names, "rest"))
            time.add_row(NAMES[system], *cells)
    return [table for table in (memory, time) if table.row_count]


def targets(work: Work, rows: dict[str, dict[str, Any]]) -> list[str]:
    """Each target on one H100, and whether this run reached it."""
    exact = rows.get("exact")
    here = exact is not None and exact["mode"] == "step" and "H100" in exact["measured"]["device"]
    here = here and (work.shape, work.tokens_per_microbatch) == ("3b", 16384)
    aims = [
        ("exact SRKL, 3b, 16,384 tokens a microbatch, MFU: at least 37%", "mfu", lambda x: x >= 0.37, "{:.1%}"),
        ("the same, peak: under 75 GB", "peak_gb", lambda x: x < 75, "{:.1f}"),
    ]
    return [
        f"{name}: {form.format(exact[key])}, {'reached' if reached(exact[key]) else 'not reached'}"
        if here
        else f"{name}: not measured here"
        for name, key, reached, form in aims
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=CONFIGS, help="default tiny on a CPU, 3b on a GPU")
    parser.add_argument("--penalties", default="none,k3,exact", help=f"of {', '.join(PENALTIES)}; default all")
    parser.add_argument("--tokens-per-microbatch", type=int, default=16384)
    parser.add_argument("--sequences", type=int, help="of a step; default 16 on a CPU, 64 on a GPU")
    parser.add_argument("--group-size", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--steps", type=int, default=5, help="measured, of each system")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], help="default float32 on a CPU, else bfloat16")
    parser.add_argument(
        "--checkpointing", action=argparse.BooleanOptionalAction, help="of activations; default at 3b and 7b on a GPU"
    )
    parser.add_argument("--compile", action="store_true", help="measure ours with learner.compile")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--peak-tflops", type=float, help="the GPU's peak in this precision, if conf/plan.yaml lacks it"
    )
    parser.add_argument("--trl-python", help="the Python of an environment that has TRL; without it, only ours runs")
    parser.add_argument(
        "--output", type=Path, help="also write all numbers to this file, one line of JSON for each system"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # in the process of one system
    options = parser.parse_args()
    options.penalties = options.penalties.split(",")
    if unknown := set(options.penalties) - set(PENALTIES):
        parser.error(f"--penalties: {', '.join(sorted(unknown))}: choose from {', '.join(PENALTIES)}")
    if options.sequences and options.sequences % options.group_size:
        parser.error(f"--sequences {options.sequences} is no multiple of --group-size {options.group_size}")
    return options


def work_of(options: argparse.Namespace) -> Work:
    device = device_named(options.device)
    shape = options.shape or ("tiny" if device == "cpu" else "3b")
    checkpointing = options.checkpointing
    return Work(
        shape=shape,
        device=device,
        precision=options.precision or ("float32" if device == "cpu" else "bfloat16"),
        tokens_per_microbatch=options.tokens_per_microbatch,
        sequences=options.sequences or (2 if device == "cpu" else 8) * options.group_size,
        group_size=options.group_size,
        checkpointing=device == "cuda" and shape in ("3b", "7b") if checkpointing is None else checkpointing,
        compile=options.compile,
        steps=options.steps,
        warmup=options.warmup,
        seed=options.seed,
        threads=options.threads,
    )


def write(output: Path, work: Work, load: Any, measurements: dict[str, Any], peak: float | None) -> None:
    """One line of JSON for each system that was measured so far."""
    line = {"work": asdict(work), "parameters": work.sizes.parameters, "load_before": load}
    rows = {system: row(one, peak if work.device == "cuda" else None) for system, one in measurements.items()}
    output.write_text("".join(json.dumps({"system": NAMES[name], **line, **one}) + "\n" for name, one in rows.items()))


def main() -> None:
    options = arguments()
    if options.measure:
        spec = json.loads(options.measure)
        try:
            print(json.dumps(measure(Work(**spec["work"]), spec["penalty"], spec["mode"])))
        except DoesNotFitError as error:
            print(json.dumps({"why_not": str(error)}))
        return

    work, console = work_of(options), make_console(140)
    load = load_average(console)
    systems = [*(list(TRL) if options.trl_python else []), *options.penalties]
    measurements, notes, peak = {}, [], options.peak_tflops and options.peak_tflops * 1e12
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as progress:
        for system in systems:
            task = progress.add_task(NAMES[system], total=1)
            if system in OURS:
                one, reasons = ours(work, system)
            else:
                one, reasons = trl(work, TRL[system][1], options.trl_python)
            progress.update(task, completed=1)
            notes += [f"{NAMES[system]}: {reason}" for reason in reasons]
            if one:
                peak = peak or peak_flops(one.get("device", ""), work.precision)
                measurements[system] = one
                if options.output:  # after each, for whoever is stopped here
                    write(options.output, work, load, measurements, peak)
    rows = {system: row(one, peak if work.device == "cuda" else None) for system, one in measurements.items()}

    if rows:
        where = f"CPU, threads: {work.threads}" if work.device == "cpu" else torch.cuda.get_device_name()
        title = f"A learner's step, {work.shape}: {work.sequences} sequences, {work.tokens_per_microbatch:,} tokens a "
        title += f"microbatch, {work.precision}{', checkpointing' if work.checkpointing else ''}"
        title += f"{', compiled' if work.compile else ''}, {where}"
        console.print(speeds(title, rows, any(one["mfu"] for one in rows.values()), bool(options.trl_python)))
        for table in breakdown(rows):
            console.print(table)
        console.print(FORMULA, highlight=False, markup=False)
    for note in notes:
        console.print(note, style="yellow", markup=False)
    for line in targets(work, rows):
        console.print(line, highlight=False)
    if work.device == "cuda" and not peak:
        console.print("No MFU: conf/plan.yaml lacks the peak of this GPU; give it with --peak-tflops.", style="yellow")
    if not options.trl_python:
        console.print(how_to_get_trl(Path(__file__).name), style="yellow", markup=False)
    sys.exit(0 if rows else 1)


if __name__ == "__main__":
    main()
