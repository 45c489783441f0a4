"""Rows of a dataset, the same from a local file as from where the dataset is published.

Searched in this order: the path that was given; $CARERFT_DATA/<file>; the Hugging Face hub at a pinned revision or, for
a dataset that its authors publish elsewhere, their repository at a pinned commit. A file holds JSON lines, or one JSON
document with a list of rows. Every fault of the data is a DataError that names the file and the line, or the row of a
document.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from io import BufferedReader
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from carerft.errors import DataError, reason
from carerft.world.bases import cache_directory

log = logging.getLogger(__name__)

ROOT_VARIABLE = "CARERFT_DATA"
OWN_FILE = "task.path=FILE (of a benchmark: benchmark.NAME.path=FILE)"
ROW_REMEDY = (
    'write each row as a JSON object on a line of its own, {"problem": "...", "answer": "..."}, or a list of them'
)
START = 4096
"""Bytes of a file that tell its kind."""
BOM = b"\xef\xbb\xbf"
UTF_16 = "text in UTF-16", "save it in UTF-8: iconv -f UTF-16 -t UTF-8 {file}"
OTHER_KINDS = {
    b"\x1f\x8b": ("compressed by gzip", "unpack it: gunzip {file}"),
    b"BZh": ("compressed by bzip2", "unpack it: bunzip2 {file}"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "unpack it: zstd -d {file}"),
    b"PK\x03\x04": ("a zip archive, as Excel's workbooks are", "unpack it, or save the sheet as CSV in UTF-8"),
    b"PAR1": ("a Parquet file", "let its name end in .parquet, and read it by task=questions"),
    b"ARROW1": ("an Arrow file", "save it as Parquet, or as JSON lines"),
    b"\xff\xfe": UTF_16,
    b"\xfe\xff": UTF_16,
}
"""By their first bytes, files that hold no text in UTF-8: what each is, and what to do."""


@dataclass(frozen=True)
class Published:
    """One split of a public dataset.

    file: path below $CARERFT_DATA. rows, sha256: of the copy that this was tested with.
    hub, configs, split, revision: its address on the hub; the rows of the configs follow one another, as in the file.
    url: the file's address, for a dataset that is not on the hub. key: the field with the rows, if the file is one
    JSON object.
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
    """fields: as in the file. location: "file:line" or its like on the hub, for error messages. index: from 0. line: of
    the file, from 1; 0 where there is none."""

    fields: dict[str, Any]
    location: str
    index: int
    line: int = 0

    def text(self, *names: str) -> str:
        """The first of these fields that is present, as text (a number is converted). Raises DataError."""
        for name in names:
            value = self.fields.get(name)
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                return str(value)
            if value is not None:
                raise DataError(f"{self.location}: the field {name!r} is no text but {value!r}", "write it as a string")
        wanted = " or ".join(repr(name) for name in names)
        present = ", ".join(repr(name) for name in list(self.fields)[:8]) or "none"
        raise DataError(
            f"{self.location}: no field {wanted} (its fields: {present})", f"give every line a field {names[0]!r}"
        )


def load_rows(published: Published, path: str | None = None) -> list[Row]:
    """All rows. path: a file of the user's own, in place of the published one. Raises DataError."""
    file = local_file(published) if path is None else Path(path).expanduser()
    if file is None and published.url:
        file = _downloaded(published)
    rows = read_rows(file, published.key) if file else _from_hub(published)
    for row in rows:
        as_json(row)
    if path is not None:
        return rows
    if len(rows) != published.rows:
        raise DataError(
            f"{rows[-1].location} is the last: {len(rows):,} rows, but {published.file} has {published.rows:,}",
            "fetch it again, from the hub after clearing the cache of `datasets`; "
            f"a file of your own goes by {OWN_FILE}, not into ${ROOT_VARIABLE}",
        )
    if file and hashlib.sha256(file.read_bytes()).hexdigest() != published.sha256:
        log.warning("%s is not byte for byte the file that this was tested with (sha256 differs)", file)
    return rows


def local_file(published: Published) -> Path | None:
    """$CARERFT_DATA/<file>, if there is such a file."""
    root = os.environ.get(ROOT_VARIABLE)
    file = Path(root or "").expanduser() / published.file
    return file if root and file.is_file() else None


def read_rows(file: Path, key: str | None = None) -> list[Row]:
    """As `json_rows`, at least one. Raises DataError."""
    rows = list(json_rows(file, key))
    if not rows:
        raise DataError(f"{file} is empty", "give a file with one JSON object per line, or a list of them")
    return rows


def json_rows(file: Path, key: str | None = None) -> Iterator[Row]:
    """The objects of a file in UTF-8: of JSON lines (one at a time; blank lines are skipped), of a JSON list, or of an
    object whose field `key` is that list. Raises DataError."""
    with open_file(file) as opened:
        is_list = opened.peek(START).removeprefix(BOM).lstrip().startswith(b"[")
        data = opened.read() if is_list or key is not None else b""
        if is_list or f'"{key}"'.encode() in data:
            document = _json(data, file)
            values = document.get(key) if isinstance(document, dict) else document
            if not isinstance(values, list):
                example = f'write {{"{key}": [{{...}}, ...]}}, or JSON lines'
                raise DataError(f"{file}: its object has no list {key!r}", example)
            for index, value in enumerate(values):
                yield located(str(file), value, index)
            return
        index = 0
        for number, line in enumerate(opened if key is None else data.splitlines(keepends=True), 1):
            if line.strip():
                yield located(str(file), _json(line.rstrip(b"\n"), file, number), index, number)
                index += 1


def located(name: str, fields: Any, index: int, line: int = 0) -> Row:
    """A row of the file or dataset `name`. line: of the file, from 1; 0 where rows have none. Raises DataError."""
    location = f"{name}:{line}" if line else f"{name}, row {index + 1}"
    if not isinstance(fields, dict):
        raise DataError(f"{location}: a JSON {type(fields).__name__}, not an object", ROW_REMEDY)
    return Row(fields, location, index, line)


def open_file(file: Path, text: bool = True) -> BufferedReader:
    """The file, opened to be read. Raises DataError if it can't be or, for text in UTF-8, if its first bytes are those
    of another kind of file."""
    try:
        opened = open(file, "rb")  # noqa: SIM115 - in a `with` of the caller's
        start = opened.peek(START)[:START] if text else b""
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}", "give the path of a file of rows, such as JSON lines") from error
    for magic, (kind, remedy) in OTHER_KINDS.items():
        if start.startswith(magic):
            raise DataError(f"{file} is {kind}", remedy.format(file=file))
    if b"\0" in start:
        raise DataError(f"{file} is no text in UTF-8: it holds zero bytes", "save it as text, in UTF-8")
    return opened


def as_json(row: Row) -> bytes:
    """Its fields. Raises DataError for a text that is no Unicode text: JSON can hold half of a surrogate pair."""
    try:
        return json.dumps(row.fields, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise DataError(
            f"{row.location}: the character \\u{code:04x} is half of a surrogate pair, and no text by itself",
            "write the character itself, in UTF-8, or leave it out",
        ) from error


def decoded(data: bytes, file: Path, line: int, encoding: str = "utf-8-sig") -> str:
    """The text of these bytes, which begin at that line of the file. Raises DataError."""
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise DataError(f"{file}:{line}: not UTF-8 at byte {column}", "save the file in UTF-8") from error


def _json(data: bytes, file: Path, line: int = 1) -> Any:
    """The JSON value of these bytes, which begin at that line of the file. Raises DataError."""
    text = decoded(data, file, line)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        location = f"{file}:{line + error.lineno - 1}"
        remedy = ROW_REMEDY
        if error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string"):
            remedy = f"fetch the file again, if it was cut; else {ROW_REMEDY}"
        elif "\r" in error.doc.rstrip():
            remedy = "end lines with a line feed: a carriage return alone is none"
        elif line == 1 and error.doc.lstrip()[:1] not in ("{", "["):
            remedy = f"{ROW_REMEDY}; the name of a table ends in .csv, .tsv or .parquet"
        raise DataError(f"{location}: not JSON ({error.msg} at column {error.colno})", remedy) from error
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of too many digits
        raise DataError(f"{file}:{line}: not readable as JSON ({error})", ROW_REMEDY) from error


def _downloaded(published: Published) -> Path:
    """The file at published.url, cached in $CARERFT_CACHE/data (else ~/.cache/carerft/data). Raises DataError."""
    file = cache_directory() / "data" / published.file
    if file.is_file():
        return file
    try:
        with urlopen(published.url, timeout=30) as response:
            data = response.read()
        if hashlib.sha256(data).hexdigest() != published.sha256:
            raise OSError("the download is another file: its sha256 differs")
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.partial-{os.getpid()}")
        partial.write_bytes(data)
        partial.replace(file)
    except (OSError, HTTPException) as error:
        raise _unavailable(published, published.url, error) from error
    return file


def _from_hub(published: Published) -> list[Row]:
    from datasets import load_dataset
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    # Without a network the hub's client retries for 25 s; in offline mode it turns to its cache at once.
    constants.HF_HUB_OFFLINE = offline or not _reachable(constants.ENDPOINT)
    try:
        rows = [
            (f"{published.hub} {config} {published.split}", dict(fields))
            for config in published.configs
            for fields in load_dataset(published.hub, config, split=published.split, revision=published.revision)
        ]
    except Exception as error:  # the network, the hub and the cache can fail in many ways
        raise _unavailable(published, f"the hub dataset {published.hub}", error) from error
    finally:
        constants.HF_HUB_OFFLINE = offline
    return [Row(fields, f"{name}, row {index}", index) for index, (name, fields) in enumerate(rows)]


def _reachable(url: str) -> bool:
    from huggingface_hub import get_session

    try:
        get_session().head(url, timeout=5.0)
    except Exception:  # the client's own errors, which change with its versions
        return False
    return True


def _unavailable(published: Published, address: str, error: Exception) -> DataError:
    root = os.environ.get(ROOT_VARIABLE)
    local = f"{Path(root) / published.file} does not exist" if root else f"{ROOT_VARIABLE} is not set"
    return DataError(
        f"no data for {published.file}: path is not set, {local}, and {address} could not be loaded ({reason(error)})",
        f"give a file by {OWN_FILE}, or a directory that holds {published.file} by {ROOT_VARIABLE}=DIRECTORY, "
        f"or connect to the network to fetch {published.hub or 'it'} once",
    )
