"""Short runs of the command line, in this process or in one of their own, and what they leave."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from carerft import cli
from helpers import processes

SMALL = [
    "model=tiny", "steps=2", "samples=2", "rollout.prompts_per_batch=4", "algorithm.group_size=2", "tracker=none",
    "evaluation.limit=6", "evaluation.bootstrap=20",
]  # fmt: skip


def run(directory: Path, *overrides: str, verb: str = "train") -> int:
    small = (
        SMALL
        if verb == "train"
        else [o for o in SMALL if o.split("=")[0].split(".")[0] in ("model", "samples", "tracker", "evaluation")]
    )
    return cli.main([verb, *small, *overrides, f'hydra.run.dir="{directory}"'])


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


STEPS = 10
PLAN = [
    "model=tiny", f"steps={STEPS}", "rollout.prompts_per_batch=8", "algorithm.group_size=4",
    "learner.updates_per_batch=4", "learner.checkpoint_every=2", "learner.schedule=cosine", "learner.warmup_steps=2",
    "benchmark=none", "tracker=none",
]  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(directory: Path, *overrides: str, stderr: int = subprocess.STDOUT) -> subprocess.Popen:
    flags = [word for word in overrides if word.startswith("--")]  # which Hydra does not take between overrides
    words = [*flags, *PLAN, *(word for word in overrides if word not in flags)]
    command = [sys.executable, "-m", "carerft", "train", *words, f'hydra.run.dir="{directory}"']
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=ENVIRONMENT, cwd=directory.parent
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=600)
    return output


def train_on_a_full_disk(directory: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """A run in which no file may grow beyond 1000 KiB: that stops a checkpoint's writing as a full disk does."""
    process = start(directory, *overrides, stderr=subprocess.PIPE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000 * 1024, 1000 * 1024))
    output, errors = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def train(directory: Path, *overrides: str) -> str:
    process = start(directory, *overrides)
    output = finish(process)
    assert process.returncode == 0, f"exit status {process.returncode}\n{output}"
    return output


def wait_for(condition, process: subprocess.Popen) -> None:
    """Until the condition holds; fails if the process ends before it does."""
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, "ended before it could be interrupted:\n" + process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def lines(directory: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    path = directory / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "throughput/"))} for line in found]


def logged(directory: Path) -> int:
    path = directory / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def weights(directory: Path) -> bytes:
    return (directory / "model" / "model.safetensors").read_bytes()


TWO, ASIDE = "learner.processes=2", "learner.async_checkpoints=true"


def check_equal(directory: Path, alone: Path) -> None:
    """The same samples and rewards, and weights and losses within float32's rounding."""
    expected, found = (load_file(place / "model" / "model.safetensors") for place in (alone, directory))
    assert found.keys() == expected.keys()
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-5
    for line, right in zip(lines(directory), lines(alone), strict=True):
        assert line.keys() == right.keys()
        for key in right:
            exact = key.startswith("reward/") or key in ("step", "rollout/length_mean", "learner/learning_rate")
            assert line[key] == (right[key] if exact else pytest.approx(right[key], rel=1e-3, abs=1e-5)), key


def family(process: psutil.Process) -> set[psutil.Process]:
    """All that a process and its processes have started, with the workers of its Ray, which the server has forked."""
    found = set(process.children(recursive=True))
    for raylet in [each for each in (process, *found) if each.name() == "raylet"]:
        workers = map(psutil.Process, processes.running(RAY_RAYLET_PID=str(raylet.pid)))
        found |= {own for worker in workers for own in (worker, *worker.children(recursive=True))}
    return found


def assert_gone(pids: list[int], seconds: float = 20) -> None:
    def alive(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    end = time.monotonic() + seconds
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < end, f"left behind: {[psutil.Process(pid).name() for pid in left]}"
        time.sleep(0.1)
