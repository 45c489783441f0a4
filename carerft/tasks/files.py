"""Rows of a dataset from a local file or from its public place, the same rows either way.

Looked for in this order: the path that was given; $CARERFT_DATA/<file>; the Hugging Face hub at a pinned revision, or
for a dataset that its authors publish elsewhere, their repository at a pinned commit. A file holds JSON lines, or one
JSON document with a list of rows. Whatever is wrong with the data is a DataError that names the file and the line, or
the row of a document.
"""

import hashlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, urlopen

from carerft.errors import ConfigError, DataError

log = logging.getLogger(__name__)

ROOT_VARIABLE = "CARERFT_DATA"
ROW_REMEDY = 'every row must be a JSON object such as {"problem": "...", "answer": "..."}'


@dataclass(frozen=True)
class Published:
    """One split of a public dataset.

    file: below $CARERFT_DATA. rows, sha256: of the copy that this was tested with.
    hub, configs, split, revision: where the hub has it; several configs follow one another, as they do in the file.
    url: where this very file is, if not on the hub. key: the field that holds the rows, where the file is one object.
    """

    file: str
    rows: int
    sha256: str
    hub: str = ""
    configs: tuple[str, ...] = ()
    split: str = ""
    revision: str = ""
    url: str = ""
    key: str | None = None


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
        rows = read_rows(Path(path).expanduser(), published.key)
        if len(rows) < published.rows:
            log.info("%s has %d rows, the published split %d", path, len(rows), published.rows)
        return rows
    local = local_file(published)
    if local is None and published.url:
        local = _downloaded(published)
    return _from_hub(published) if local is None else _checked(local, published)


def local_file(published: Published) -> Path | None:
    """$CARERFT_DATA/<file>, if there is such a file."""
    root = os.environ.get(ROOT_VARIABLE)
    file = Path(root).expanduser() / published.file if root else None
    return file if file is not None and file.is_file() else None


def read_rows(file: Path, key: str | None = None) -> list[Row]:
    """The objects of a file in UTF-8, at least one. Raises DataError.

    It holds a JSON list, or an object with that list in its field `key`, or else JSON lines.
    """
    try:
        data = file.read_bytes()
    except OSError:
        data = b""  # the other reader says what is wrong
    if not _is_document(data, key):
        return list(read_json_lines(file))
    value = _value(data, file)
    found = value.get(key) if isinstance(value, dict) else value
    if not isinstance(found, list):
        raise DataError(f"{file}: its object has no list {key!r}", f'write {{"{key}": [{{...}}, ...]}}, or JSON lines')
    if not found:
        raise DataError(f"{file}: its list is empty", "give a file with at least one row")
    rows = [Row(fields, f"{file}, row {i + 1}", i) for i, fields in enumerate(found)]
    for row in rows:
        if not isinstance(row.fields, dict):
            raise DataError(f"{row.place}: a JSON {type(row.fields).__name__}, not an object", "leave it out")
    return rows


def _is_document(data: bytes, key: str | None) -> bool:
    start = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    if key is None or not start.startswith(b"{"):
        return start.startswith(b"[")
    try:
        first = json.loads(start.partition(b"\n")[0])
    except (ValueError, RecursionError):
        return True  # an object that goes on in the next line, or a broken one
    return key in first


def read_json_lines(file: Path) -> Iterator[Row]:
    """The objects of a JSON-lines file in UTF-8, at least one; blank lines are skipped. Raises DataError."""
    index = 0
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield Row(_object(line, file, number), f"{file}:{number}", index)
                    index += 1
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}", "give the path of a JSON-lines file") from error
    if index == 0:
        raise DataError(f"{file} is empty", "give a file with one JSON object per line")


def _object(line: bytes, file: Path, number: int) -> dict[str, Any]:
    value = _value(line, file, number)
    if not isinstance(value, dict):
        raise DataError(f"{file}:{number}: a JSON {type(value).__name__}, not an object", ROW_REMEDY)
    return value


def _value(data: bytes, file: Path, line: int = 1) -> Any:
    """The JSON value of these bytes, which begin at that line of the file. Raises DataError."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise DataError(f"{file}:{line}: not UTF-8 at byte {column}", "save the file in UTF-8") from error
    except json.JSONDecodeError as error:
        place = f"{file}:{line + error.lineno - 1}"
        raise DataError(f"{place}: not JSON ({error.msg} at column {error.colno})", ROW_REMEDY) from error
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of too many digits
        raise DataError(f"{file}:{line}: not readable as JSON ({error})", ROW_REMEDY) from error


def _checked(file: Path, published: Published) -> list[Row]:
    rows = read_rows(file, published.key)
    if len(rows) != published.rows:
        last = rows[-1].place.removeprefix(str(file)).replace(":", ", line ")
        raise DataError(
            f"{file}{last} is its last: {len(rows):,} rows, and {published.file} has {published.rows:,}",
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
        raise _absent(published, f"the hub dataset {published.hub}", error) from error
    if len(rows) != published.rows:
        raise DataError(
            f"{published.hub} at {published.revision} has {len(rows):,} rows, not {published.rows:,}",
            "clear the cache of `datasets` and fetch it again",
        )
    return rows


def _downloaded(published: Published) -> Path:
    """The file at published.url, kept in $CARERFT_CACHE/data (else ~/.cache/carerft/data). Raises DataError."""
    cache = Path(os.environ.get("CARERFT_CACHE") or Path.home() / ".cache" / "carerft")
    file = cache / "data" / published.file
    if file.is_file():
        return file
    try:
        with urlopen(published.url, timeout=30) as response:
            data = response.read()
        if hashlib.sha256(data).hexdigest() != published.sha256:
            raise OSError("what came is not that file: its sha256 differs")
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.partial-{os.getpid()}")
        partial.write_bytes(data)
        partial.replace(file)
    except (OSError, HTTPException) as error:
        raise _absent(published, published.url, error) from error
    return file


def _absent(published: Published, source: str, error: Exception) -> DataError:
    root = os.environ.get(ROOT_VARIABLE)
    tried = f"{Path(root) / published.file} does not exist" if root else f"{ROOT_VARIABLE} is not set"
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return DataError(
        f"no data for {published.file}: data.path is not set, {tried}, and {source} could not be loaded ({reason})",
        f"give a file by data.path=FILE, or a directory that holds {published.file} by {ROOT_VARIABLE}=DIRECTORY, "
        f"or connect to the network to fetch {published.hub or 'it'} once",
    )


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


def check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} problems", "write a limit of at least 1, or leave it out")
