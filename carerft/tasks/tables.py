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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from carerft.errors import DataError, reason
from carerft.tasks.files import Row, as_json, decoded, json_rows, located, open_file

SEPARATORS = {".csv": ",", ".tsv": "\t"}
OTHER_SEPARATORS = {
    "\t": "let the file's name end in .tsv",
    ",": "let the file's name end in .csv",
    ";": "separate columns by commas",
    "|": "separate columns by commas",
}


class Rows:
    """Rows of one table, by their position among these."""

    def __init__(self, name: str, rows: Iterable[Row]):
        self._name, self._text, self._ends = name, bytearray(), array("q", [0])
        for row in rows:
            self._text += b"[%b, %d, %d]" % (as_json(row), row.index, row.line)
            self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, position: int) -> Row:
        start, end = self._ends[position], self._ends[position + 1]
        return located(self._name, *json.loads(self._text[start:end]))


def file_rows(path: str) -> Iterator[Row]:
    """The rows of a file, one at a time; the ending of its name tells CSV, TSV and Parquet from JSON. Raises DataError
    where a row can't be read."""
    file = Path(path).expanduser()
    ending = file.suffix.lower()
    if ending == ".parquet":
        return _parquet(file)
    return _separated(file, SEPARATORS[ending]) if ending in SEPARATORS else json_rows(file)


def is_separated(path: str | None) -> bool:
    """Whether this is a file of CSV or TSV, all of whose cells are texts."""
    return path is not None and Path(path).suffix.lower() in SEPARATORS


def hub_rows(dataset: str, subset: str | None, split: str, revision: str | None) -> Iterator[Row]:
    """The rows of a split of a dataset on the hub (or in the cache of `datasets`), kept on disk by `datasets`."""
    import datasets

    name = f"{dataset} {split}"
    try:
        rows = datasets.load_dataset(dataset, subset, split=split, revision=revision)
    except Exception as error:  # the network, the hub and the cache fail in many ways
        raise DataError(
            f"{name} could not be loaded ({reason(error)})",
            "check the name, its subset (task.subset=...), its split (task.split=...), and the network",
        ) from error
    for index, fields in enumerate(rows):
        yield located(name, dict(fields), index)


def _parquet(file: Path) -> Iterator[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    with open_file(file, text=False) as opened:
        try:
            table = ParquetFile(opened)
            _check_names(table.schema_arrow.names, str(file))
            rows = (fields for batch in table.iter_batches() for fields in batch.to_pylist())
            for index, fields in enumerate(rows):
                yield located(str(file), fields, index)
        except (ArrowException, OSError, ValueError) as error:
            raise DataError(
                f"{file}: not readable as Parquet ({reason(error)})",
                "fetch or write it again, if it was cut; a file of another kind has another ending: .jsonl, .csv, .tsv",
            ) from error


def _check_names(names: Sequence[str], location: str) -> None:
    if "" in names or len(set(names)) < len(names):
        raise DataError(
            f"{location}: the columns are named {', '.join(map(repr, names))}", "give each a name of its own"
        )


def _separated(file: Path, separator: str) -> Iterator[Row]:
    """Rows of CSV or TSV, in the columns that the first line names. Every cell is a text."""
    csv.field_size_limit(sys.maxsize)
    with open_file(file) as opened:
        lines = (
            decoded(line, file, number, "utf-8-sig" if number == 1 else "utf-8")
            for number, line in enumerate(opened, 1)
        )
        reader = csv.reader(lines, delimiter=separator, strict=True)
        try:
            header = [name.strip() for name in next(filter(None, reader), [])]
            last, index = reader.line_num, 0
            _check_header(header, separator, f"{file}:{last}")
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
            remedy = 'write a quote within a cell twice, and such a cell as "..."'
            if "new-line character" in str(error):
                remedy = 'end lines with a line feed, and write a cell that holds a carriage return as "..."'
            raise DataError(f"{file}:{reader.line_num}: {error}", remedy) from error


def _check_header(header: Sequence[str], separator: str, location: str) -> None:
    """Raises DataError for the first line of a file of another kind, and for columns that names don't tell apart."""
    _check_names(header, location)
    if header and header[0].startswith(("{", "[")):
        raise DataError(f"{location}: JSON, and no names of columns", "let the file's name end in .jsonl or .json")
    for other, remedy in OTHER_SEPARATORS.items():
        if len(header) == 1 and other != separator and other in header[0]:
            raise DataError(f"{location}: one column, {header[0]!r}: columns are separated by {separator!r}", remedy)
