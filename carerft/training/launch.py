"""Starting the processes of `learner.processes` by torchrun, and what a process knows of torchrun.

Imports nothing heavy, because most runs have one process.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from carerft.config.settings import LearnerSettings, TrainSettings
from carerft.errors import CareError, ConfigError
from carerft.text import hydra_quoted
from carerft.training.interruption import signals_handled

log = logging.getLogger(__name__)

PATIENCE_S = 3600  # for processes that a signal lets finish their step and save it; torchrun would kill them after 30 s


def processes(settings: LearnerSettings) -> int:
    """The number of processes that learn together: torchrun's if it started this one, else the configured one."""
    return int(os.environ["WORLD_SIZE"]) if _under_torchrun() else settings.processes


def starts_processes(settings: LearnerSettings) -> bool:
    """Whether this process starts those that learn, instead of learning itself."""
    return not _under_torchrun() and settings.processes > 1


def follows() -> bool:
    """Whether this process follows another: it is not the first of those that learn."""
    return _under_torchrun() and int(os.environ["RANK"]) > 0


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def quiet() -> list[str]:
    """Overrides for a process that follows: no run directory, no log file, and only errors on the terminal."""
    if not follows():
        return []
    root = "hydra.job_logging.root"
    return ["hydra.run.dir=.", f"{root}.handlers=[rich]", f"{root}.level=ERROR", "~hydra.job_logging.handlers.file"]


def start(settings: LearnerSettings, overrides: Sequence[str], directory: Path) -> None:
    """Run the processes that learn, to their end. overrides: of the run, in `directory`, after flags of Hydra's.

    Signals are forwarded to them. Raises KeyboardInterrupt after a signal, and CareError if a process fails; that
    process has then printed why.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={settings.processes}", f"--max-restarts={settings.max_restarts}"]
    command += ["-m", "carerft.commands.train", *overrides, f"hydra.run.dir={hydra_quoted(str(directory.absolute()))}"]
    # In a session of its own, so that Ctrl-C reaches it once, through this process.
    environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(PATIENCE_S), **os.environ}
    child = subprocess.Popen(command, start_new_session=True, env=environment)
    received: list[int] = []

    def forward(number: int, _: Any) -> None:
        received.append(number)
        child.send_signal(number)

    with signals_handled(forward):
        status = child.wait()
    if received:
        raise KeyboardInterrupt
    if status:
        raise CareError(
            f"one of the {settings.processes} processes of the learner failed: see its message above",
            "the same command goes on from the last checkpoint; learner.max_restarts=N does so by itself",
        )


def check_processes(settings: TrainSettings, multirun: bool) -> None:
    """Raises ConfigError for settings that do not fit the number of processes. multirun: Hydra's -m."""
    learner, rollout = settings.learner, settings.rollout
    count = processes(learner)
    if count == 1:
        if learner.reference_offload:
            raise ConfigError(
                "learner.reference_offload=true with one process: only a reference that is sharded can be offloaded",
                "write learner.processes=N, or learner.reference_offload=false",
            )
        return
    if _under_torchrun() and multirun:
        raise ConfigError(
            "several runs (-m) under torchrun", f"write learner.processes={count} without torchrun: it starts each run"
        )
    if getattr(rollout, "weight_transfer", None) == "nccl":
        raise ConfigError(
            f"rollout.weight_transfer=nccl with {count} processes of the learner: NCCL transfer is from one process",
            "write rollout.weight_transfer=reload, or learner.processes=1",
        )
    kind, _, index = learner.device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and getattr(rollout, "placement", None) != "dedicated"):
        raise ConfigError(
            f"learner.device={learner.device} with {count} processes of the learner: each has a GPU of its own, from "
            "the first on",
            "write learner.device=auto, and choose GPUs by CUDA_VISIBLE_DEVICES",
        )
