"""The files that a run reads: what they are is part of a run's identity, as its configuration is.

A configuration names files by their paths, and another file at the same path would give other numbers. So a manifest
holds of each input its size and the SHA-256 of its content or, of a file too large to be read for this, the time of
its last change. Of the built-in world it holds the version of the questions and the content of the model's weights,
which two builds of the same seed need not share.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from carerft.config.functions import is_reference
from carerft.config.identity import INCIDENTAL, flatten
from carerft.errors import UserCodeError
from carerft.world.bases import base_place
from carerft.world.questions import VERSION

LARGE = 64 * 2**20
"""Bytes from which on a file of a directory, such as a model's weights, is known by its size and time alone."""
PUBLISHED = "CARERFT_DATA"
"""Environment variable: the directory of copies of published datasets (`carerft.tasks.files`)."""
PATHS = ("path", "test_path", "embedding")  # the last parts of keys whose values are paths, also without a slash
NO_PATHS = ("name", "_target_", "project", "entity", "device", "revision")
SUFFIXES = {".json", ".jsonl", ".safetensors", ".bin", ".pt", ".txt", ".model", ".jinja", ".tiktoken", ".yaml", ".yml"}
MOST_FILES = 1000  # of a directory

Entry = dict[str, Any]
"""One file: key, path, bytes, and sha256 or modified (nanoseconds since 1970). The world's questions: version."""
QUESTIONS, WEIGHTS = "questions of the built-in world", "weights of the built-in model"  # in the place of paths


def inputs(config: Mapping[str, Any]) -> list[Entry]:
    """Every existing file that a composed configuration names, or that lies in a directory that it names.

    A file that several keys name is listed once, by the first of them.
    """
    entries: dict[str, Entry] = {}
    for key, path, published in _named(config):
        for file in _files(path):
            if str(file) not in entries:
                content = _content(file, LARGE if file != path and not published else None)
                entries[str(file)] = {"key": key, "path": str(file), **({"published": True} if published else {})}
                entries[str(file)] |= content
    return [*entries.values(), *_built_in(config)]


def changes(then: Sequence[Entry], now: Sequence[Entry]) -> list[str]:
    """One line for each file that is another than it was: `data.path: /x/train.jsonl: 1,234 bytes then, 1,300 now`.

    then: of a manifest. A published dataset's own copy counts only if it was there then and is now: elsewhere the
    dataset comes from where it is published.
    """
    before, after = ({entry["path"]: entry for entry in entries} for entries in (then, now))
    lines = []
    for path in dict.fromkeys([*before, *after]):
        old, new = before.get(path), after.get(path)
        known = old or new or {}
        if difference := _difference(old, new, known):
            lines.append(f"{known['key']}: {path}: {difference}")
    return lines


def changed_since(directory: Path, manifest: Mapping[str, Any], now: Sequence[Entry] | None = None) -> list[str]:
    """`changes` of the inputs of a run, if it has written anything that depends on them, and if the version that wrote
    its manifest recorded inputs.

    now: of `inputs`; None: those of the run's configuration. Where a grader or a reward of the user's own has failed,
    its file may have been corrected: the run goes on with it.
    """
    then = manifest.get("inputs")
    if then is None or (manifest["status"] != "done" and not has_results(directory)):
        return []
    now = inputs(manifest["config"]) if now is None else now
    if str(manifest.get("error")).startswith(UserCodeError.__name__):
        code = {entry["path"] for entry in (*then, *now) if entry["path"].endswith(".py")}
        then, now = ([entry for entry in entries if entry["path"] not in code] for entries in (then, now))
    return changes(then, now)


def has_results(directory: Path) -> bool:
    """Whether a run has written anything that depends on its settings and inputs."""
    files = [directory / "metrics.jsonl", *directory.glob("evaluation/*")]
    return any(directory.glob("checkpoints/*")) or any(file.is_file() and file.stat().st_size for file in files)


def _named(config: Mapping[str, Any]) -> Iterator[tuple[str, Path, bool]]:
    """(key, path, whether it is a directory of published datasets) of what a configuration reads."""
    flat = flatten(config)
    for key, value in flat.items():
        last = key.rpartition(".")[2]
        if last in NO_PATHS or any(f"{key}.".startswith(f"{skip}.") for skip in INCIDENTAL):
            continue
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text and (path := _existing(key, last, text)):
                yield key, path, False
    root = os.environ.get(PUBLISHED)
    for key, value in flat.items():
        module, _, _ = str(value).rpartition(".")
        group = key.removesuffix("._target_")
        if root and group != key and module.startswith("carerft.tasks.") and flat.get(f"{group}.path", "") is None:
            for name in {module.rpartition(".")[2], group.rpartition(".")[2]}:
                if (path := Path(root).expanduser() / name).is_dir():
                    yield f"{group}, ${PUBLISHED}", path, True


def _built_in(config: Mapping[str, Any]) -> Iterator[Entry]:
    """What a run reads of the built-in world. Weights that are not built yet count as a published dataset's copy."""
    flat = flatten(config)
    asked = [key for key, value in flat.items() if key.endswith("_target_") and str(value).endswith(".WorldTask")]
    if asked:
        yield {"key": asked[0].removesuffix("._target_"), "path": QUESTIONS, "version": VERSION}
    if flat.get("model.path") == "world":
        weights = base_place(flat.get("model.base", 0), flat.get("model.confidence", False)) / "model.safetensors"
        if weights.is_file():
            yield {"key": "model.base", "path": WEIGHTS, "published": True, **_content(weights, None)}


def _existing(key: str, last: str, text: str) -> Path | None:
    """The file or directory that a value names; None if it names none, or is a word that happens to be its name."""
    if (key, text) == ("model.path", "world"):  # the built-in model
        return None
    if is_reference(text):  # a function of the user's own
        text = text.rpartition(":")[0]
    path = Path(text).expanduser()
    try:
        if path.is_file() and (last in PATHS or "/" in text or path.suffix):
            return path
        return path if path.is_dir() and (last in PATHS or "/" in text) else None
    except (OSError, ValueError):  # too long for a path, or with a zero byte
        return None


def _files(path: Path) -> list[Path]:
    """A file, or the files of a directory that can be inputs, in order: of a model's directory those beside its
    config.json, of any other those below it as well."""
    if not path.is_dir():
        return [path]
    deep, found = not (path / "config.json").is_file(), list[Path]()
    for parent, below, names in os.walk(path):
        below[:] = sorted(name for name in below if not name.startswith(".")) if deep else []
        files = (Path(parent, name) for name in sorted(names) if not name.startswith("."))
        found += [file for file in files if (deep or file.suffix in SUFFIXES) and file.is_file()]
        if len(found) > MOST_FILES:
            break
    return sorted(found[:MOST_FILES])


def _content(file: Path, large: int | None) -> Entry:
    """What a file holds. large: bytes from which on it is not read; None: it is always read."""
    try:
        state = file.stat()
        if large is None or state.st_size < large:
            digest = _digest(os.path.realpath(file), state.st_size, state.st_mtime_ns, state.st_ino)
            return {"bytes": state.st_size, "sha256": digest}
    except OSError:  # what reads it says so
        return {"bytes": None}
    return {"bytes": state.st_size, "modified": state.st_mtime_ns}


@lru_cache(maxsize=4096)
def _digest(file: str, size: int, modified: int, inode: int) -> str:
    """The SHA-256 of a file's content, computed once for each state of the file."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _difference(old: Entry | None, new: Entry | None, known: Entry) -> str:
    """What has changed, in words; empty if nothing has. known: one of both."""
    if "version" in known:  # of the questions of the built-in world; earlier versions recorded none
        before, now = (entry.get("version", "unknown") if entry else "unknown" for entry in (old, new))
        return f"version {before} then, {now} now" if before != now else ""
    if old is None or new is None:
        found = "was there then, and is not now" if old else "was not there then, and is now"
        return "" if known.get("published") else found
    if old.get("bytes") != new.get("bytes"):
        return f"{_size(old)} then, {_size(new).removesuffix(' bytes')} now"
    if old.get("sha256") and new.get("sha256"):
        if old["sha256"] == new["sha256"]:
            return ""
        return f"another content of as many bytes (SHA-256 {old['sha256'][:12]} then, {new['sha256'][:12]} now)"
    if old.get("modified") == new.get("modified") or "modified" not in old:  # a record has no times
        return ""
    return f"last changed {_time(old)} then, {_time(new)} now"


def _size(entry: Entry) -> str:
    size = entry.get("bytes")
    return "unreadable" if size is None else f"{size:,} bytes"


def _time(entry: Entry) -> str:
    modified = entry.get("modified")
    if modified is None:
        return "at an unknown time"
    return datetime.fromtimestamp(modified / 1e9, UTC).isoformat(timespec="microseconds")
