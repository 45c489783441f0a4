"""Names of the directories that runs are written to: usable on every file system, and nobody else's."""

import hashlib
import re
from contextlib import suppress
from datetime import datetime
from pathlib import Path

LONGEST = 255
"""Bytes of a file's name that common file systems take."""
DEFAULT = "default"
"""The cell of a multirun whose jobs differ in nothing that names a cell, such as `-m seed=0,1`."""


def cell_name(overrides: str) -> str:
    """The directory of a cell, named by its overrides: `algorithm=grpo,regularizer=srkl`.

    A name that would be several directories, or too long for one, is made usable, and a part of its hash keeps it
    apart from others: `data.path=_data_train.jsonl,steps=2-1f0c2ab97d3e`.
    """
    name = re.sub(r"[/\x00-\x1f\x7f]", "_", overrides)
    if not name:
        return DEFAULT
    if name == overrides and len(_bytes(name)) <= LONGEST:
        return name
    name = re.sub("[\"']", "", name)
    mark = f"-{hashlib.sha256(_bytes(overrides)).hexdigest()[:12]}"
    return _bytes(name)[: LONGEST - len(mark)].decode("utf-8", "ignore") + mark


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


_reserved: list[Path] = []


def reserved(parent: Path, when: datetime) -> str:
    """The name of a new directory in `parent`, made by this call: of processes that ask in the same second, each gets
    one of its own."""
    name = when.strftime("%Y-%m-%d_%H-%M-%S")
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        unique = name if number == 1 else f"{name}_{number}"
        try:
            (parent / unique).mkdir()
        except FileExistsError:
            number += 1
        else:
            _reserved.append(parent / unique)
            return unique


def release() -> None:
    """Remove the directories that this process has reserved and not used: OmegaConf also resolves a default that is
    then overridden."""
    while _reserved:
        with suppress(OSError):  # it is in use, or gone
            _reserved.pop().rmdir()
