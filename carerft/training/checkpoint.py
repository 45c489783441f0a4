"""Checkpoints: everything that a bit-exact resume needs, written beside and renamed into place, with checksums.

A checkpoint is a directory `step_<n>` of `tensors/` (weights and the optimizer's state, in torch.distributed's format:
each of several processes writes its part, and any number of them reads it), `state.pt` (plain tensors, numbers and
containers, read back without running any code from it) and `checksums.json`.
"""

import hashlib
import json
import logging
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException

from carerft.errors import RunDirectoryError

log = logging.getLogger(__name__)

REPLACED = ".replaced_step_"
TENSORS = "tensors"
# With no_dist, torch warns that it takes this process to be the only one. A thread of its own may say so.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)


def random_states() -> dict[str, Any]:
    """The state of every global random number generator."""
    name, keys, *rest = np.random.get_state()
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Continue every generator from `random_states()`."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    name, numbers, *rest = states["numpy"]
    np.random.set_state((name, numbers.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def steps_of(directory: Path) -> list[int]:
    """The steps that have a checkpoint, oldest first."""
    names = [path.name.removeprefix("step_") for path in directory.glob("step_*")]
    return sorted(int(name) for name in names if name.isdigit())


def save_tensors(path: Path, policy: nn.Module, optimizer: torch.optim.Optimizer | None, several: bool) -> None:
    """Write the weights that learn and the optimizer's state. several: all processes of torch.distributed do it
    together. Frozen ones, beside an adapter, are the base model's, as the reference is.

    Raises RunDirectoryError, in all of them, where one can't.
    """
    with said_plainly():
        dcp.save(_tensors(policy, optimizer), checkpoint_id=path, no_dist=not several)


def begin_tensors(
    path: Path, policy: nn.Module, optimizer: torch.optim.Optimizer | None, group: ProcessGroup | None
) -> Future:
    """As `save_tensors`, in a thread, from a copy in the CPU's memory that is made before this returns.

    group: of several processes, one of gloo that nothing else uses. The future is done when all of them have written;
    its error is to be read `said_plainly`.
    """
    tensors = _tensors(policy, optimizer)
    return dcp.async_save(tensors, checkpoint_id=path, process_group=group, no_dist=group is None)  # type: ignore[return-value]


def _tensors(policy: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in _learning(policy).items():
        tensors[f"weights.{name}"] = parameter.detach()
        for slot, tensor in _parts(optimizer, parameter).items():
            tensors[f"optimizer.{slot}.{name}"] = tensor
    return tensors


def load_tensors(path: Path, policy: nn.Module, optimizer: torch.optim.Optimizer | None, several: bool) -> None:
    """Read what `save_tensors` wrote, in one process or several. Weights go into their parameters' own memory, whose
    alignment decides rounding."""
    parameters = _learning(policy)
    tensors = {f"weights.{name}": parameter.detach() for name, parameter in parameters.items()}
    for key, stored in dcp.FileSystemReader(path).read_metadata().state_dict_metadata.items():
        kind, slot, name = key.split(".", 2)
        if kind == "optimizer" and optimizer is not None:
            parameter = parameters[name].detach()
            tensor = _parts(optimizer, parameters[name]).get(slot)
            if tensor is None:  # it has learned nothing yet
                whole = stored.size == parameter.shape
                tensor = torch.zeros_like(parameter) if whole else torch.zeros(stored.size, device=parameter.device)
                optimizer.state[parameters[name]][slot] = tensor
            tensors[key] = tensor
    dcp.load(tensors, checkpoint_id=path, no_dist=not several)


def _parts(optimizer: torch.optim.Optimizer | None, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The optimizer's state of a parameter, as tensors whose memory it is: adamw_8bit says how its is made."""
    if optimizer is None:
        return {}
    return getattr(optimizer, "parts", optimizer.state.get)(parameter) or {}


def _learning(policy: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name; a tied one once."""
    return {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}


@contextmanager
def said_plainly() -> Iterator[None]:
    """What torch says of processes that could not write, as a RunDirectoryError."""
    try:
        yield
    except CheckpointException as error:
        raise RunDirectoryError("; ".join(str(failure) for failure, _ in error.failures.values())) from error


def save(
    directory: Path,
    step: int,
    write: Callable[[Path], Callable[[], None] | None],
    state: dict[str, Any],
    keep: int | None,
) -> Callable[[], None]:
    """Begin to write `directory/step_<step>`; what is returned waits for the tensors, puts the checkpoint into its
    place, and removes all but the newest `keep` (None: none). Another may begin only after that.

    write: `save_tensors`; or begins to write them, and returns what waits for the end. A checkpoint is there whole or
    not at all, one that it replaces too. Both raise RunDirectoryError where it can't be written (a full disk); those
    written before are untouched.
    """
    final, beside = directory / f"step_{step}", directory / f".step_{step}.{os.getpid()}"
    with _whole_or_not_at_all(beside, directory, step):
        for leftover in directory.glob(".step_*"):  # of a process that was killed while writing
            shutil.rmtree(leftover, ignore_errors=True)
        beside.mkdir(parents=True)
        torch.save({**state, "random": random_states()}, beside / "state.pt")
        written = write(beside / TENSORS)

    def finish() -> None:
        with _whole_or_not_at_all(beside, directory, step):
            if written:
                written()
            sums = {str(path.relative_to(beside)): _checksum(path) for path in _files(beside)}
            (beside / "checksums.json").write_text(json.dumps(sums, indent=2) + "\n")
            for path in _files(beside):
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            _put_back(directory)
            if final.exists():
                os.replace(final, directory / f"{REPLACED}{step}")
            os.replace(beside, final)
            shutil.rmtree(directory / f"{REPLACED}{step}", ignore_errors=True)
        for old in steps_of(directory)[:-keep] if keep else []:
            shutil.rmtree(directory / f"step_{old}", ignore_errors=True)

    return finish


@contextmanager
def _whole_or_not_at_all(beside: Path, directory: Path, step: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # torch reports a full disk by errors of its own
        shutil.rmtree(beside, ignore_errors=True)
        kept = steps_of(directory)
        raise RunDirectoryError(
            f"cannot write the checkpoint of step {step} to {directory}: {error}",
            (f"the one of step {kept[-1]} is intact; " if kept else "")
            + "free the disk, then the same command continues",
        ) from error


def _put_back(directory: Path) -> None:
    """Undo what a process began that was killed between moving a checkpoint away and putting another in its place."""
    for replaced in directory.glob(f"{REPLACED}*"):
        final = directory / f"step_{replaced.name.removeprefix(REPLACED)}"
        if final.exists():
            shutil.rmtree(replaced)
        else:
            os.replace(replaced, final)


def load_latest(directory: Path, read: Callable[[Path], None]) -> dict[str, Any] | None:
    """Read the newest intact checkpoint's tensors (`load_tensors`) and return its state; None where there is none.

    A damaged checkpoint (truncated, altered, incomplete) is named in a warning, set aside as `damaged_step_<n>`, and
    the one before it is taken.
    """
    _put_back(directory)
    for step in reversed(steps_of(directory)):
        path = directory / f"step_{step}"
        if problem := damage(path):
            log.warning("checkpoint %s is damaged (%s): set aside, falling back to the one before it", path, problem)
            shutil.rmtree(directory / f"damaged_step_{step}", ignore_errors=True)
            os.replace(path, directory / f"damaged_step_{step}")
            continue
        read(path / TENSORS)
        state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
        set_random_states(state.pop("random"))
        return state
    return None


def damage(path: Path) -> str | None:
    try:
        sums = json.loads((path / "checksums.json").read_text())
        for name, expected in sums.items():
            if _checksum(path / name) != expected:
                return f"the checksum of {name} differs"
        if f"{TENSORS}/.metadata" not in sums:
            return "an earlier version of carerft wrote it"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
