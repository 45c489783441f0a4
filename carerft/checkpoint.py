"""Checkpoints: everything that a bit-exact resume needs, written beside and renamed into place, with checksums.

A checkpoint is a directory `step_<n>` of `weights.safetensors`, `state.pt` (plain tensors, numbers and containers,
read back without running any code from it) and `checksums.json`.
"""

import hashlib
import json
import logging
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from carerft.errors import RunDirectoryError

log = logging.getLogger(__name__)

REPLACED = ".replaced_step_"


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


def save(directory: Path, step: int, policy: nn.Module, state: dict[str, Any], keep: int | None) -> None:
    """Write `directory/step_<step>`, then remove all but the newest `keep` (None: remove none).

    A checkpoint is there whole or not at all, one that it replaces too. Raises RunDirectoryError where it can't be
    written (a full disk); those written before are untouched.
    """
    final, beside = directory / f"step_{step}", directory / f".step_{step}.{os.getpid()}"
    try:
        for leftover in directory.glob(".step_*"):  # of a process that was killed while writing
            shutil.rmtree(leftover, ignore_errors=True)
        beside.mkdir(parents=True)
        # named_parameters lists a tied weight once, as safetensors needs it.
        save_file({name: p.detach().cpu() for name, p in policy.named_parameters()}, beside / "weights.safetensors")
        torch.save({**state, "random": random_states()}, beside / "state.pt")
        sums = {path.name: _checksum(path) for path in sorted(beside.iterdir())}
        (beside / "checksums.json").write_text(json.dumps(sums, indent=2) + "\n")
        for path in beside.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        _put_back(directory)
        if final.exists():
            os.replace(final, directory / f"{REPLACED}{step}")
        os.replace(beside, final)
        shutil.rmtree(directory / f"{REPLACED}{step}", ignore_errors=True)
    except Exception as error:  # safetensors and torch report a full disk by errors of their own
        shutil.rmtree(beside, ignore_errors=True)
        kept = steps_of(directory)
        raise RunDirectoryError(
            f"cannot write the checkpoint of step {step} to {directory}: {error}",
            (f"the one of step {kept[-1]} is intact; " if kept else "")
            + "free the disk, then the same command continues",
        ) from error
    for old in steps_of(directory)[:-keep] if keep else []:
        shutil.rmtree(directory / f"step_{old}", ignore_errors=True)


def _put_back(directory: Path) -> None:
    """Undo what a process began that was killed between moving a checkpoint away and putting another in its place."""
    for replaced in directory.glob(f"{REPLACED}*"):
        final = directory / f"step_{replaced.name.removeprefix(REPLACED)}"
        if final.exists():
            shutil.rmtree(replaced)
        else:
            os.replace(replaced, final)


def load_latest(directory: Path, policy: nn.Module) -> dict[str, Any] | None:
    """Put the newest intact checkpoint's weights into the policy and return its state; None where there is none.

    A damaged checkpoint (truncated, altered, incomplete) is named in a warning, set aside as `damaged_step_<n>`, and
    the one before it is taken.
    """
    _put_back(directory)
    for step in reversed(steps_of(directory)):
        path = directory / f"step_{step}"
        if problem := _damage(path):
            log.warning("checkpoint %s is damaged (%s): set aside, falling back to the one before it", path, problem)
            shutil.rmtree(directory / f"damaged_step_{step}", ignore_errors=True)
            os.replace(path, directory / f"damaged_step_{step}")
            continue
        weights = load_file(path / "weights.safetensors")
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                parameter.copy_(weights[name])  # into the parameter's own memory, whose alignment decides rounding
        state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
        set_random_states(state.pop("random"))
        return state
    return None


def _damage(path: Path) -> str | None:
    try:
        sums = json.loads((path / "checksums.json").read_text())
        for name, expected in sums.items():
            if _checksum(path / name) != expected:
                return f"the checksum of {name} differs"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
