"""Rows of a dataset from a local JSON-lines file or from the Hugging Face hub, the same rows either way.

Looked for in this order: the path that was given; $CARERFT_DATA/<file>; the hub, at a pinned revision. Whatever is
wrong with the data is a DataError that names the file and the line.
"""

import hashlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from carerft.errors import ConfigError, DataError

log = logging.getLogger(__name__)

ROOT_VARIABLE = "CARERFT_DATA"


@dataclass(frozen=True)
class Published:
    """One split of a public dataset.

    file: below $CARERFT_DATA. rows, sha256: of the copy that this was tested with.
    hub, configs, split, revision: where the hub has it; several configs follow one another, as they do in the file.
    """

    file: str
    rows: int
    sha256: str
    hub: str
    configs: tuple[str, ...]
    split: str
    revision: str


@dataclass(frozen=True)
class Row:
    """fields: as in the file. place: "file:line" or its like on the hub, for error messages. index: from 0."""

    fields: dict[str, Any]
    place: str
    index: int

    def text(self, *names: str) -> str:
        """The first of these fields that is there, as text (a number is written out). Raises DataError."""
        for name in names:
            value = self.fields.get(name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return str(value)
            if value is not None and not isinstance(value, str):
                raise DataError(f"{self.place}: the field {name!r} is no text but {value!r}", "write it as a string")
            if value is not None:
                return value
        wanted = " or ".join(repr(name) for name in names)
        found = ", ".join(repr(name) for name in list(self.fields)[:8]) or "none"
        raise DataError(
            f"{self.place}: no field {wanted} (its fields: {found})", f"give every line a field {names[0]!r}"
        )


def load_rows(published: Published, path: str | None = None) -> list[Row]:
    """All rows. path: a file of the user's own, in place of the published one. Raises DataError."""
    if path is not None:
        rows = list(read_json_lines(Path(path).expanduser()))
        if len(rows) < published.rows:
            log.info("%s has %d rows, the published split %d", path, len(rows), published.rows)
        return rows
    local = local_file(published)
    if local is not None:
        return _checked(local, published)
    return _from_hub(published)


def local_file(published: Published) -> Path | None:
    """$CARERFT_DATA/<file>, if there is such a file."""
    root = os.environ.get(ROOT_VARIABLE)
    file = Path(root).expanduser() / published.file if root else None
    return file if file is not None and file.is_file() else None


def read_json_lines(file: Path) -> Iterator[Row]:
    """The objects of a JSON-lines file in UTF-8, at least one; blank lines are skipped. Raises DataError."""
    index = 0
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield Row(_object(line, f"{file}:{number}"), f"{file}:{number}", index)
                    index += 1
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}", "give the path of a JSON-lines file") from error
    if index == 0:
        raise DataError(f"{file} is empty", "give a file with one JSON object per line")


def _object(line: bytes, place: str) -> dict[str, Any]:
    remedy = 'every line must be a JSON object such as {"problem": "...", "answer": "..."}'
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 at byte {error.start + 1}", "save the file in UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON ({error.msg} at column {error.colno})", remedy) from error
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of too many digits
        raise DataError(f"{place}: not readable as JSON ({error})", remedy) from error
    if not isinstance(value, dict):
        raise DataError(f"{place}: a JSON {type(value).__name__}, not an object", remedy)
    return value


def _checked(file: Path, published: Published) -> list[Row]:
    rows = list(read_json_lines(file))
    if len(rows) != published.rows:
        raise DataError(
            f"{file}, line {rows[-1].place.rpartition(':')[2]} is its last: {len(rows):,} rows, and {published.file} "
            f"has {published.rows:,}",
            f"fetch the file again; a file of your own goes by data.path=FILE, not into ${ROOT_VARIABLE}",
        )
    if hashlib.sha256(file.read_bytes()).hexdigest() != published.sha256:
        log.warning("%s is not byte for byte the file that this was tested with (sha256 differs)", file)
    return rows


def _from_hub(published: Published) -> list[Row]:
    rows: list[Row] = []
    try:
        for config, fields in _hub_rows(published):
            rows.append(Row(fields, f"{published.hub} {config} {published.split}, row {len(rows)}", len(rows)))
    except Exception as error:  # whatever the network, the hub or the cache can come up with
        root = os.environ.get(ROOT_VARIABLE)
        tried = f"{Path(root) / published.file} does not exist" if root else f"{ROOT_VARIABLE} is not set"
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise DataError(
            f"no data for {published.file}: data.path is not set, {tried}, and the hub dataset {published.hub} "
            f"could not be loaded ({reason})",
            f"give a file by data.path=FILE, or a directory that holds {published.file} by {ROOT_VARIABLE}=DIRECTORY, "
            f"or connect to the network to fetch {published.hub} once",
        ) from error
    if len(rows) != published.rows:
        raise DataError(
            f"{published.hub} at {published.revision} has {len(rows):,} rows, not {published.rows:,}",
            "clear the cache of `datasets` and fetch it again",
        )
    return rows


def _hub_rows(published: Published) -> Iterator[tuple[str, dict[str, Any]]]:
    from datasets import load_dataset
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    # Without a network the hub's client retries for 25 s; offline it goes to its cache, or gives up, at once.
    constants.HF_HUB_OFFLINE = offline or not _reachable(constants.ENDPOINT)
    try:
        for config in published.configs:
            table = load_dataset(published.hub, config, split=published.split, revision=published.revision)
            yield from ((config, dict(fields)) for fields in table)
    finally:
        constants.HF_HUB_OFFLINE = offline


def _reachable(url: str) -> bool:
    if getproxies():
        return True  # only the proxy knows
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 443), timeout=3.0).close()
    except OSError:
        return False
    return True


def distinct(rows: list[Row], problem: Callable[[Row], str]) -> Iterator[tuple[Row, str]]:
    """Each row with its problem's text. Raises DataError on an empty problem and on one that occurred before."""
    first: dict[str, str] = {}
    for row in rows:
        text = problem(row).strip()
        if not text:
            raise DataError(f"{row.place}: the problem is empty", "leave the line out")
        if text in first:
            raise DataError(f"{row.place}: the same problem as {first[text]}", "leave one of them out")
        first[text] = row.place
        yield row, text


def filled(template: str, problem: str) -> str:
    """The prompt. Only {question} is special: other braces stay, as in \\boxed{}. Raises ConfigError."""
    if "{question}" not in template:
        raise ConfigError(f"the prompt {template!r} has no {{question}}", "write {question} where the problem goes")
    return template.replace("{question}", problem)


def check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} problems", "write a limit of at least 1, or leave it out")
