"""Names of the directories that runs are written to: usable on every file system, and nobody else's."""

import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from carerft.config.identity import same_cell
from carerft.runs.directory import manifests

LONGEST = 255
"""Bytes of a file's name that common file systems take."""
MOST_OF_A_PATH = 40
"""Characters of a path in a name."""
QUOTES = "\"'"
DEFAULT = "default"
"""The cell of a multirun whose jobs differ in nothing that names a cell, such as `-m seed=0,1`."""


PATHS = re.compile(r"""([\w.]+\.path)=("(?:[^"\\]|\\.)*"|'[^']*'|[^,]*)""")


def cell_name(overrides: str) -> str:
    """The directory of a cell, named by its overrides: `algorithm=grpo,regularizer=srkl`.

    Paths appear as their last part, and what was left out is kept apart from others by a part of its hash:
    `model=Qwen2.5-1.5B,regularizer=srkl-1f0c2a`. So is a name that would be several directories, or too long for one.
    """
    paths: list[str] = []

    def last_part(found: re.Match[str]) -> str:
        if "/" not in found[2]:
            return found[0]
        paths.append(found[0])
        return f"{found[1]}={re.sub('[^A-Za-z0-9_.+-]', '_', Path(found[2].strip(QUOTES)).name)[:MOST_OF_A_PATH]}"

    name = PATHS.sub(last_part, overrides)
    if not paths:
        return earlier_cell_name(overrides)
    name = re.sub(r"model\.path=([^,]*),(.*?)model=path(?=,|$)", r"\2model=\1", name)
    return earlier_cell_name(f"{name}-{hashlib.sha256(_bytes(','.join(paths))).hexdigest()[:6]}")


def earlier_cell_name(overrides: str) -> str:
    """`cell_name` of earlier versions, which wrote paths in full: `model.path=_a_b,model=path-1f0c2ab97d3e`."""
    name = re.sub(r"[/\x00-\x1f\x7f]", "_", overrides)
    if not name:
        return DEFAULT
    if name == overrides and len(_bytes(name)) <= LONGEST:
        return name
    name = re.sub("[\"']", "", name)
    mark = f"-{hashlib.sha256(_bytes(overrides)).hexdigest()[:12]}"
    return _bytes(name)[: LONGEST - len(mark)].decode("utf-8", "ignore") + mark


def labels(names: Sequence[str], alone: str) -> list[str]:
    """What tables call these cells: the overrides that not all of them share, without what keeps directories apart.
    alone: where nothing is left."""
    parts = [re.sub(r"-[0-9a-f]{6,12}$", "", name.replace("\\", "")).split(",") for name in names]
    shared = set.intersection(*map(set, parts)) if parts else set()
    return [" ".join(text for text in part if text not in shared) or alone for part in parts]


def cell_directory(axes: str, overrides: str, sweep: Path, config: Callable[[], dict[str, Any]]) -> str:
    """The directory in `sweep` of a run's cell, which its seeds share.

    axes: the overrides of the keys that are swept, which name it. If runs of another configuration have that name, or
    no key is swept that could, all `overrides` name it; so did earlier versions, whose directories are found again.
    config: the run's configuration.
    """
    slashed = [overrides.lstrip("/")] if "/" in overrides else []  # several directories, in the earliest versions
    whole = cell_name(overrides)
    for name in (*slashed, earlier_cell_name(overrides), whole):
        if any(Path(sweep, name).glob("seed=*/manifest.json")):
            return name
    if not axes:
        return whole
    name = re.sub("^model[.]path=|(?<=,)model[.]path=", "model=", re.sub(r"""["'\\]""", "", cell_name(axes)))
    others = sorted(Path(sweep, name).glob("seed=*"))
    first = next((manifest["config"] for _, manifest in manifests(others)), None)
    return name if first is None or same_cell(first, config()) else whole


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


_reserved: list[Path] = []


def reserved(parent: Path, when: datetime) -> str:
    """The name of a new directory in `parent`, made by this call: of processes that ask in the same second, each gets
    one of its own."""
    name = when.strftime("%Y-%m-%d_%H-%M-%S")
    parent.mkdir(parents=True, exist_ok=True)
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    while True:
        place = parent / next(names)
        with suppress(FileExistsError):
            place.mkdir()
            _reserved.append(place)
            return place.name


def release() -> None:
    """Remove the directories that this process has reserved and not used: OmegaConf also resolves a default that is
    then overridden."""
    while _reserved:
        with suppress(OSError):  # it is in use, or gone
            _reserved.pop().rmdir()
