"""One command, several processes: what `learner.processes` starts, and what a process that torchrun started must know.

Nothing heavy is imported here: most runs are of one process.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from carerft.config.settings import LearnerSettings, TrainSettings
from carerft.errors import CareError, ConfigError

log = logging.getLogger(__name__)


def processes(settings: LearnerSettings) -> int:
    """How many processes learn together. torchrun, where it started this one, knows better than the configuration."""
    return int(os.environ["WORLD_SIZE"]) if _started() else settings.processes


def to_be_started(settings: LearnerSettings) -> bool:
    """Whether this process is to start those that learn, and not to learn itself."""
    return not _started() and settings.processes > 1


def follows() -> bool:
    """Whether this is one of several processes, and not the first."""
    return _started() and int(os.environ["RANK"]) > 0


def _started() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def quiet() -> list[str]:
    """Overrides for a process that follows: it has no directory, writes no log, and says nothing but errors."""
    if not follows():
        return []
    log_to = "hydra.job_logging"
    handlers = [f"{log_to}.root.handlers=[rich]", f"~{log_to}.handlers.file", f"{log_to}.root.level=ERROR"]
    return ["hydra.run.dir=.", *handlers]


def recorded(function: Callable[..., int]) -> Callable[..., int]:
    """The function, such that torchrun shows the error by which it ends."""
    if not _started():
        return function
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(function)  # type: ignore[return-value]


def start(settings: LearnerSettings, overrides: Sequence[str], directory: Path) -> None:
    """Run the processes that learn, to their end. overrides: of the run, in `directory`.

    Raises CareError where they fail: the one that failed has then said why; and KeyboardInterrupt where they were
    interrupted, which is handed on to them.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={settings.processes}", f"--max-restarts={settings.max_restarts}"]
    path = str(directory.absolute()).replace("\\", "\\\\").replace('"', '\\"')
    command += ["-m", "carerft.commands.train", *overrides, f'hydra.run.dir="{path}"']
    # A session of its own: Ctrl-C reaches it once, through us.
    child = subprocess.Popen(command, start_new_session=True)
    asked: list[int] = []

    def hand_on(number: int, _: Any) -> None:
        asked.append(number)
        child.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt
    if status:
        raise CareError(
            f"one of the {settings.processes} processes of the learner failed: see its message above",
            "the same command goes on from the last checkpoint; learner.max_restarts=N does so by itself",
        )


def check_processes(settings: TrainSettings, multirun: bool) -> None:
    """Raises ConfigError for what processes cannot do together. multirun: Hydra's -m."""
    learner, rollout = settings.learner, settings.rollout
    count = processes(learner)
    if count == 1:
        if learner.reference_offload:
            raise ConfigError(
                "learner.reference_offload=true with one process: only what is shared out can be kept elsewhere",
                "write learner.processes=N, or learner.reference_offload=false",
            )
        return
    if _started() and multirun:
        raise ConfigError(
            "several runs (-m) under torchrun", f"write learner.processes={count} without torchrun: it starts each run"
        )
    if getattr(rollout, "weight_transfer", None) == "nccl":
        raise ConfigError(
            f"rollout.weight_transfer=nccl with {count} processes of the learner: it is from one process",
            "write rollout.weight_transfer=reload, or learner.processes=1",
        )
    kind, _, index = learner.device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and getattr(rollout, "placement", None) != "dedicated"):
        raise ConfigError(
            f"learner.device={learner.device} with {count} processes of the learner: each has a GPU of its own, from "
            "the first on",
            "write learner.device=auto, and choose GPUs by CUDA_VISIBLE_DEVICES",
        )
