"""Rows of a user's own data: JSON lines, a JSON list, CSV, TSV, Parquet, or a dataset of the Hugging Face hub.

Texts are read here rather than by `datasets`, which guesses types: it makes a time of "2024-01-31" and a number of
"007", takes the cell "NA" for null, and can't tell an absent field from null. Every fault names the file and the line.

Rows are kept once, as JSON in one block of memory, which is about the size of the file; a row becomes an object again
where it is used.
"""

import csv
import json
import sys
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from carerft.errors import DataError, reason
from carerft.tasks.files import Row, encodable, json_row, open_file, read_rows

SEPARATORS = {".csv": ",", ".tsv": "\t"}


class Rows:
    """Rows of one table, by their position among these."""

    def __init__(self, name: str, rows: Iterable[Row]):
        self._name, self._text, self._ends = name, bytearray(), array("q", [0])
        self._numbers, self._lines = array("q"), array("q")
        for row in encodable(rows):
            self._text += json.dumps(row.fields, ensure_ascii=False, default=str).encode()
            self._ends.append(len(self._text))
            self._numbers.append(row.index)
            self._lines.append(row.line)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, position: int) -> Row:
        start, end = self._ends[position], self._ends[position + 1]
        return located(self._name, json.loads(self._text[start:end]), self._numbers[position], self._lines[position])


def located(name: str, fields: dict[str, Any], index: int, line: int) -> Row:
    """line: of the file `name`; 0 where rows have none."""
    return Row(fields, f"{name}:{line}" if line else f"{name}, row {index + 1}", index, line)


def file_rows(path: str) -> Iterator[Row]:
    """The rows of a file, one at a time; the ending of its name tells CSV, TSV and Parquet from JSON. Raises DataError
    where a row can't be read."""
    file = Path(path).expanduser()
    ending = file.suffix.lower()
    if ending == ".parquet":
        return _published_rows(str(file), "parquet", data_files=str(file), split="train")
    if ending in SEPARATORS:
        return _separated(file, SEPARATORS[ending])
    with open_file(file) as opened:
        start = opened.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    return iter(read_rows(file)) if start.startswith(b"[") else _json_lines(file)


def is_separated(path: str | None) -> bool:
    """Whether this is a file of CSV or TSV, all of whose cells are texts."""
    return path is not None and Path(path).suffix.lower() in SEPARATORS


def hub_rows(dataset: str, subset: str | None, split: str, revision: str | None) -> Iterator[Row]:
    """The rows of a split of a dataset on the hub (or in the cache of `datasets`), kept on disk by `datasets`."""
    return _published_rows(f"{dataset} {split}", dataset, subset, split=split, revision=revision)


def _published_rows(name: str, *arguments: Any, **options: Any) -> Iterator[Row]:
    import datasets

    try:
        rows = datasets.load_dataset(*arguments, **options)
    except Exception as error:  # the network, the hub, the cache and Parquet's reader fail in many ways
        raise DataError(
            f"{name} could not be loaded ({reason(error)})",
            "check the name, its subset (task.subset=...), its split (task.split=...), and the network",
        ) from error
    for index, fields in enumerate(rows):
        yield located(name, dict(fields), index, 0)


def _json_lines(file: Path) -> Iterator[Row]:
    index = 0
    with open_file(file) as opened:
        for number, line in enumerate(opened, 1):
            if line.strip():
                yield located(str(file), json_row(line.rstrip(b"\n"), file, number), index, number)
                index += 1


def _separated(file: Path, separator: str) -> Iterator[Row]:
    """Rows of CSV or TSV, in the columns that the first line names. Every cell is a text."""
    csv.field_size_limit(sys.maxsize)
    with open_file(file) as opened:
        reader = csv.reader(_lines(opened, file), delimiter=separator, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            if "" in header or len(set(header)) < len(header):
                raise DataError(
                    f"{file}:1: the columns are named {', '.join(map(repr, header))}", "give each a name of its own"
                )
            last, index = reader.line_num, 0
            for cells in reader:
                first, last = last + 1, reader.line_num
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise DataError(
                        f"{file}:{first}: {len(cells)} cells, but the first line names {len(header)} columns",
                        f'separate cells by {separator!r}, and write a cell that holds one, or a quote, as "..."',
                    )
                yield located(str(file), dict(zip(header, cells, strict=True)), index, first)
                index += 1
        except csv.Error as error:
            raise DataError(
                f"{file}:{reader.line_num}: {error}", 'write a quote within a cell twice, and such a cell as "..."'
            ) from error


def _lines(opened: Iterable[bytes], file: Path) -> Iterator[str]:
    for number, line in enumerate(opened, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{file}:{number}: not UTF-8 at byte {error.start + 1}", "save the file in UTF-8"
            ) from error
