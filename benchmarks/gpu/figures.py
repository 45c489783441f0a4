"""Every figure of a GPU that README and docs promise, in at most nine minutes on one H100, written as JSON.

    benchmarks/gpu.sh OUTPUT.json [--seconds 540] [--only right,learner] [--cpu]

In this order, by worth; a section for whose usual time too little is left is skipped, and the file says so:

- right: whether the learner computes what a CPU does in float32 (benchmarks/gpu/right.py);
- learner: steps at the shape of Qwen2.5-3B, with k3 and exact SRKL (benchmarks/speed/learner.py);
- compiled: the same with learner.compile, exact SRKL;
- head: the LM head alone, eager and compiled (benchmarks/speed/lm_head.py);
- doctor: `carerft doctor model=qwen2.5-3b`, with vLLM's engine where it is installed.

"figures" are what the docs ask for, each with its target. The file is written anew after each section. --cpu runs all
of it at toy sizes on a CPU, which shows that the script works and measures nothing.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "speed"))

import torch
from learner_work import Work, peak_flops
from rich.console import Console

from carerft.config.gpus import driver
from carerft.config.settings import LearnerSettings, ModelSettings, RolloutSettings
from carerft.planning.assumptions import Dataset
from carerft.planning.job import Job
from carerft.planning.memory import learning, resident
from carerft.planning.seconds import learning_flops

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Section:
    """words: of Python; FILE stands for the file that the script writes, without which its output is kept. cpu: what
    replaces the words at toy size. seconds: it is not begun with less time left."""

    words: list[str]
    cpu: list[str]
    seconds: float


LEARNER, HEAD = "benchmarks/speed/learner.py", "benchmarks/speed/lm_head.py"
STEPS = [LEARNER, "--steps", "2", "--output", "FILE", "--penalties"]
TOY_STEPS = [LEARNER, "--device", "cpu", "--sequences", "8", "--steps", "1", "--threads", "1", "--output", "FILE"]
TOY_HEAD = ["--device", "cpu", "--tokens", "256", "--repeats", "1", "--warmup", "0", "--threads", "1"]
VARIANTS = ["--json", "FILE", "--variants", "k3", "exact", "exact-compiled"]
RIGHT = "benchmarks/gpu/right.py"
SECTIONS = {
    "right": Section([RIGHT], [RIGHT, "--cpu"], 60),
    "learner": Section([*STEPS, "k3,exact"], [*TOY_STEPS, "--penalties", "k3,exact"], 90),
    "compiled": Section([*STEPS, "exact", "--compile"], [*TOY_STEPS, "--penalties", "exact", "--compile"], 100),
    "head": Section([HEAD, "--repeats", "3", *VARIANTS], [HEAD, *TOY_HEAD, *VARIANTS], 40),
    "doctor": Section(["-m", "carerft", "doctor", "model=qwen2.5-3b"], ["-m", "carerft", "doctor"], 90),
}


def run(section: Section, cpu: bool, patience: float) -> dict[str, Any]:
    """What a section has printed or written, or why there is nothing. It ends with all its processes after patience."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "figures.json")
        words = [str(file) if word == "FILE" else word for word in (section.cpu if cpu else section.words)]
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            printed, errors = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed, errors = process.communicate()
        text = file.read_text() if file.exists() else printed
    found: dict[str, Any] = {"seconds": time.monotonic() - began, "status": process.returncode}
    if process.returncode:
        found["errors"] = errors[-2000:]
    try:
        found["found"] = json.loads(text)
    except ValueError:  # lines: of JSON each, or of text
        lines = text.splitlines()
        found["found"] = [json.loads(line) if line.startswith("{") else line for line in lines]
    return found


def planned(work: dict[str, Any]) -> tuple[float, float]:
    """What the plan says of a measured learner's step: bytes at its peak, and floating-point operations."""
    given = Work(**work)
    rollouts = given.rollouts()
    lengths = rollouts.prompt_lengths.float().mean().item(), rollouts.lengths.float().mean().item()
    job = Job(
        steps=1, samples=1, group_size=given.group_size, penalized=True, exact=True, groups=1, rounds=1,
        model=ModelSettings(name=given.shape, path=given.shape),
        learner=LearnerSettings(
            0.0, updates_per_batch=1, tokens_per_microbatch=given.tokens_per_microbatch, precision=given.precision,
            gradient_checkpointing=given.checkpointing,
        ),
        rollout=RolloutSettings(
            name="transformers", prompts_per_batch=given.sequences // given.group_size, max_tokens=1
        ),
        task=Dataset(1, *lengths, max_tokens=1), benchmarks=[],
    )  # fmt: skip
    parts = resident(job, given.sizes) | learning(job, given.sizes)
    return sum(parts.values()), learning_flops(job, given.sizes)


def figures(sections: dict[str, Any], toy: bool) -> list[dict[str, Any]]:
    """The promised figures that these sections hold. Those that are not of toy sizes have targets."""
    found: list[dict[str, Any]] = []

    def figure(name: str, value: float | None, least: float | None = None, most: float | None = None) -> None:
        reached, least, most = None, None if toy else least, None if toy else most
        if value is not None and (least, most) != (None, None):
            reached = (least is None or value >= least) and (most is None or value <= most)
        found.append({"figure": name, "value": value, "at least": least, "at most": most, "reached": reached})

    def rows(section: str, key: str) -> dict[str, Any]:
        lines = sections.get(section, {}).get("found") or []
        lines = [lines] if isinstance(lines, dict) else lines
        return {line[key]: line for line in lines if isinstance(line, dict) and key in line}

    if cases := rows("right", "case"):
        figure("cases in which the learner is right, share", statistics.mean(x["right"] for x in cases.values()), 1)
    steps, compiled = rows("learner", "system"), rows("compiled", "system")
    k3, exact, fused = steps.get("carerft, k3"), *(x.get("carerft, exact SRKL") for x in (steps, compiled))
    for name, one in {"eager": exact, "compiled": fused}.items():
        if one is None:
            continue
        size, operations = planned(one["work"])
        peak = peak_flops(one["measured"]["device"], one["work"]["precision"])
        figure(f"learner, exact SRKL, {name}: s a step", one["step_s"])
        figure(f"learner, exact SRKL, {name}: tokens/s", one["tokens_per_s"])
        figure(f"learner, exact SRKL, {name}: MFU", one["mfu"], 0.37 if name == "compiled" else None)
        figure(f"learner, exact SRKL, {name}: peak, GB", one["peak_gb"], most=75)
        figure(f"learner, exact SRKL, {name}: peak by plan, GB", size / 1e9)
        figure(f"learner, exact SRKL, {name}: learn_share", peak and operations / one["step_s"] / peak)
    if k3 and exact:
        figure("learner: exact SRKL over k3, time", exact["step_s"] / k3["step_s"], most=1.5)
    if exact and fused:
        figure("learner: learner.compile, share of the time saved", 1 - fused["step_s"] / exact["step_s"])
    heads = sections.get("head", {}).get("found")
    heads = heads["rows"] if isinstance(heads, dict) else {}
    for name, one in heads.items():
        figure(f"head, {name}: s", one["seconds"])
        figure(f"head, {name}: over the floor of 4 products", one["over_floor"], most=None if name == "k3" else 1.3)
        figure(f"head, {name}: extra, GB", one["extra_gb"], most=1.5)
    if {"exact", "k3"} <= heads.keys():
        figure("head: exact over k3", heads["exact"]["over_floor"] / heads["k3"]["over_floor"], most=1.5)
    if "doctor" in sections and "status" in sections["doctor"]:
        figure("doctor: exit status", sections["doctor"]["status"], most=0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the file of the figures")
    parser.add_argument("--seconds", type=float, default=540, help="for all sections together")
    parser.add_argument("--only", default=",".join(SECTIONS), help="some sections, with commas")
    parser.add_argument("--cpu", action="store_true", help="toy sizes, on a CPU")
    options = parser.parse_args()
    if not options.cpu and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use; --cpu tries the script at toy sizes")
    end, console = time.monotonic() + options.seconds, Console(width=140)
    machine = {"torch": torch.__version__, "cuda": torch.version.cuda, "driver": driver(), "cores": os.cpu_count()}
    machine |= {"device": "cpu" if options.cpu else torch.cuda.get_device_name(), "python": platform.python_version()}
    sections: dict[str, Any] = {}
    for name in options.only.split(","):
        left = end - time.monotonic()
        if left < SECTIONS[name].seconds and not options.cpu:
            sections[name] = {"skipped": f"{left:.0f} s are left, {SECTIONS[name].seconds:.0f} are needed"}
        else:
            with console.status(name):
                sections[name] = run(SECTIONS[name], options.cpu, max(left, 1))
        report = {
            "machine": machine,
            "toy": options.cpu,
            "figures": figures(sections, options.cpu),
            "sections": sections,
        }
        options.output.write_text(json.dumps(report, indent=1) + "\n")
        outcome = (
            sections[name].get("skipped") or f"{sections[name]['seconds']:.0f} s, status {sections[name]['status']}"
        )
        console.print(f"{name}: {outcome}", highlight=False)
    for one in figures(sections, options.cpu):
        value = "not measured here" if one["value"] is None else f"{one['value']:.4g}"
        reached = {None: "", True: ", reached", False: ", NOT reached"}[one["reached"]]
        limits = "".join(
            f" ({word} {one[word]:g}{reached})" for word in ("at least", "at most") if one[word] is not None
        )
        console.print(f"  {one['figure']}: {value}{limits}", highlight=False, markup=False)


if __name__ == "__main__":
    main()
