"""Machines with GPUs, as far as nvidia-smi goes."""

import os
import shlex
from pathlib import Path

import pytest


def show_gpus(
    monkeypatch: pytest.MonkeyPatch,
    place: Path,
    *cards: tuple[str, int],
    driver: str = "580.65.06",
    capability: str = "9.0",
) -> None:
    """Put a program nvidia-smi on PATH that prints these cards, each by its name and its mebibytes, all of them free.
    Without cards, it fails as one that cannot talk to the driver does."""
    lines = [f"{name}, {memory}, {memory}, {driver}, {capability}" for name, memory in cards]
    script = f"printf '%s\\n' {shlex.join(lines)}" if lines else "echo 'Driver/library version mismatch'; exit 18"
    place.joinpath("nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    place.joinpath("nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
