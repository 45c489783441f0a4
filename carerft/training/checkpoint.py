"""Checkpoints: everything that a bit-exact resume needs.

A checkpoint is a directory `step_<n>` with

- `tensors/`: weights and optimizer state (checkpoint_tensors.py);
- `state.pt`: plain tensors, numbers and containers; reading it runs no code;
- `checksums.json`: the SHA-256 of every file, block by block.

It is written under a hidden name, flushed to disk and renamed, so that it is complete or absent, whenever the process
is killed.
"""

import errno
import hashlib
import json
import logging
import os
import random
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from carerft.config.checks import TENSORS
from carerft.errors import RunDirectoryError
from carerft.runs.reading import steps_of
from carerft.training.checkpoint_tensors import CheckpointTensors
from carerft.training.learner import Learner

log = logging.getLogger(__name__)

REPLACED = ".replaced_step_"
BLOCK = 2**28  # bytes that one thread hashes at a time
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Checkpoints:
    """A run's checkpoints, in one directory. asynchronous: they are written while training goes on."""

    def __init__(self, directory: Path, tensors: CheckpointTensors | Learner, asynchronous: bool = False):
        """tensors: saves and loads weights and optimizer state."""
        self._directory, self._tensors = directory, tensors
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if asynchronous else None
        self._pending: Future[None] | None = None

    def save(self, step: int, state: dict[str, Any], keep: int | None) -> None:
        """Write `step_<step>`, then delete all but the newest `keep` checkpoints (None: delete none).

        An asynchronous checkpoint is of the moment of this call, and is finished by the next `save` or `wait`. Raises
        RunDirectoryError if this checkpoint, or a pending one, cannot be written (a full disk); earlier checkpoints are
        left intact.
        """
        self.wait()
        temporary = self._directory / f".step_{step}.{os.getpid()}"
        with self._removed_on_failure(temporary, step):
            for leftover in self._directory.glob(".step_*"):  # of a process that was killed while writing
                shutil.rmtree(leftover, ignore_errors=True)
            temporary.mkdir(parents=True)
            with open(temporary / "state.pt", "wb") as file:  # given a path, torch would not say why it can't write
                torch.save({**state, "random": random_states()}, file)
            self._tensors.save(temporary / TENSORS, self._thread is not None)
        if self._thread is None:
            self._finish(temporary, step, keep)
        else:
            self._pending = self._thread.submit(self._finish, temporary, step, keep)

    def wait(self) -> None:
        """Wait for the pending checkpoint, if there is one. Raises RunDirectoryError if it cannot be written."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def load_latest(self) -> dict[str, Any] | None:
        """Load the newest intact checkpoint's tensors and random states, and return its state; None without any.

        A damaged checkpoint (truncated, altered or incomplete) is reported in a warning and renamed to
        `damaged_step_<n>`; the one before it is loaded instead.
        """
        self._restore_replaced()
        for step in reversed(steps_of(self._directory)):
            path = self._directory / f"step_{step}"
            if problem := damage(path):
                log.warning("checkpoint %s is damaged (%s): falling back to the one before it", path, problem)
                shutil.rmtree(self._directory / f"damaged_step_{step}", ignore_errors=True)
                os.replace(path, self._directory / f"damaged_step_{step}")
                continue
            self._tensors.load(path / TENSORS)
            state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
            set_random_states(state.pop("random"))
            return state
        return None

    def _finish(self, temporary: Path, step: int, keep: int | None) -> None:
        final, replaced = self._directory / f"step_{step}", self._directory / f"{REPLACED}{step}"
        with self._removed_on_failure(temporary, step):
            self._tensors.finish_saving()
            checksums = _checksums(temporary, {str(p.relative_to(temporary)): BLOCK for p in _files(temporary)})
            (temporary / "checksums.json").write_text(json.dumps(checksums, indent=2) + "\n")
            for path in _files(temporary):
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            self._restore_replaced()
            if final.exists():
                os.replace(final, replaced)
            os.replace(temporary, final)
            shutil.rmtree(replaced, ignore_errors=True)
        for old in steps_of(self._directory)[:-keep] if keep else []:
            shutil.rmtree(self._directory / f"step_{old}", ignore_errors=True)

    @contextmanager
    def _removed_on_failure(self, temporary: Path, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)
            cause = _file_error(error)
            if cause is None and not isinstance(error, RunDirectoryError):
                raise  # a defect
            intact = steps_of(self._directory)
            full = cause.errno in FULL if cause else "unexpected pos" in str(error)  # torch's, of another process
            raise RunDirectoryError(
                f"cannot write the checkpoint of step {step} to {self._directory}: {cause or error}",
                (f"the one of step {intact[-1]} is intact; " if intact else "")
                + ("free the disk, then " if full else "")
                + "the same command continues",
            ) from error

    def _restore_replaced(self) -> None:
        """Move back a checkpoint whose replacement was interrupted by a kill."""
        for replaced in self._directory.glob(f"{REPLACED}*"):
            final = self._directory / f"step_{replaced.name.removeprefix(REPLACED)}"
            if final.exists():
                shutil.rmtree(replaced)
            else:
                os.replace(replaced, final)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files; None if they are intact."""
    try:
        checksums = dict(json.loads((path / "checksums.json").read_text()))
        # A string is of a whole file: earlier versions wrote it.
        blocks = {name: BLOCK if isinstance(expected, list) else sys.maxsize for name, expected in checksums.items()}
        for name, found in _checksums(path, blocks).items():
            if checksums[name] not in (found, found[0]):
                return f"the checksum of {name} differs"
        if f"{TENSORS}/.metadata" not in checksums:
            return "an earlier version of carerft wrote it"
    except (OSError, TypeError, ValueError) as error:
        return str(error)
    return None


def random_states() -> dict[str, Any]:
    """The state of every global random number generator; of several GPUs, of this process's own."""
    numpy_state = np.random.get_state()
    assert isinstance(numpy_state, tuple)
    name, keys, *rest = numpy_state
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Set every generator to what `random_states` returned."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    name, numbers, *rest = states["numpy"]
    np.random.set_state((name, numbers.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        cuda = states["cuda"]
        torch.cuda.set_rng_state(cuda[0] if isinstance(cuda, list) else cuda)  # once a list, of all visible GPUs


def _file_error(error: BaseException | None) -> OSError | None:
    """The error of a file system that is behind this one, if one is: torch raises its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _checksums(directory: Path, blocks: Mapping[str, int]) -> dict[str, list[str]]:
    """The SHA-256 of each block of these files. blocks: the bytes of one, by the file's name. A thread hashes at the
    speed of a processor, and disks are faster."""
    with ThreadPoolExecutor() as threads:
        pending = {
            name: [threads.submit(_checksum, directory / name, start, size) for start in range(0, length or 1, size)]
            for name, size in blocks.items()
            for length in [(directory / name).stat().st_size]
        }
    return {name: [part.result() for part in parts] for name, parts in pending.items()}


def _checksum(path: Path, start: int, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(start)
        while size > 0 and (part := file.read(min(size, 2**20))):  # hashlib lets other threads run meanwhile
            digest.update(part)
            size -= len(part)
    return digest.hexdigest()
