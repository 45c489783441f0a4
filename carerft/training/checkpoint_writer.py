"""Saving while the run goes on: from a copy of the moment, in a thread, one checkpoint at a time.

Each process has a `TensorWriter`, for its part of weights and optimizer; the first also a `Saver`, for the whole.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from carerft.training import checkpoint


class TensorWriter:
    """Writes this process's part of weights and the optimizer's state."""

    def __init__(self, policy: nn.Module, optimizer: torch.optim.Optimizer, several: bool):
        """several: all processes of torch.distributed are given the same calls."""
        self._policy, self._optimizer, self._several = policy, optimizer, several
        self._group: dist.ProcessGroup | None = None
        self._begun: Future | None = None

    def write(self, path: Path, aside: bool) -> None:
        """Write to this directory. aside: in a thread, from a copy that is made before this returns.

        Raises RunDirectoryError, in all processes, where one can't; aside, `finish` does.
        """
        if not aside:
            return checkpoint.save_tensors(path, self._policy, self._optimizer, self._several)
        if self._begun:
            wait([self._begun])  # the first process has finished it, and the others are about to
        if self._several and self._group is None:
            self._group = dist.new_group(backend="gloo")  # for the threads: the run goes on with its own meanwhile
        self._begun = checkpoint.begin_tensors(path, self._policy, self._optimizer, self._group)

    def finish(self) -> None:
        """Wait until all processes have written what they write aside. Raises RunDirectoryError."""
        if self._begun:
            with checkpoint.said_plainly():
                self._begun.result()


class Saver:
    """Writes the checkpoints of a run to a directory. aside: while it goes on."""

    def __init__(self, directory: Path, aside: bool):
        self.directory = directory
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if aside else None
        self._last: Future[None] | None = None

    def save(
        self, step: int, write: Callable[[Path], Callable[[], None]], state: dict[str, Any], keep: int | None
    ) -> None:
        """As checkpoint.save, after the last one has been finished. Raises RunDirectoryError, for that one too."""
        self.wait()
        finish = checkpoint.save(self.directory, step, write, state, keep)
        if self._thread is None:
            finish()
        else:
            self._last = self._thread.submit(finish)

    def wait(self) -> None:
        """Until the last checkpoint is there. Raises RunDirectoryError where it could not be written."""
        last, self._last = self._last, None
        if last:
            last.result()
