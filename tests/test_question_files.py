"""Files of a user's own questions: every kind gives the same problems, and each fault is named with its line."""

import csv
import gzip
import json

import datasets
import pytest
from helpers.questions import lines, task

from carerft.errors import DataError

ROWS = [
    {"prompt": 'How many, "really"?', "answer": "007", "level": "3"},
    {"prompt": "Two\nlines, é", "answer": "2024-01-31", "level": "1"},
    {"prompt": "NA?", "answer": "NA", "level": "3"},
]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_problems_without_guessing_types(tmp_path, kind):
    file = tmp_path / f"mine.{kind}"
    if kind == "jsonl":
        lines(file, ROWS[0], "\n", *ROWS[1:])
    elif kind == "json":
        file.write_text(json.dumps(ROWS))
    elif kind == "parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(str(file))
    else:
        with open(file, "w", newline="", encoding="utf-8-sig") as opened:
            writer = csv.DictWriter(opened, ROWS[0], dialect="excel" if kind == "csv" else "excel-tab")
            writer.writeheader()
            writer.writerows(ROWS)
    problems = task(file).problems()
    assert [(p.id, p.prompt, p.answer, p.columns) for p in problems] == [
        (f"mine/{i}", row["prompt"], row["answer"], row) for i, row in enumerate(ROWS)
    ]
    third = task(file, where="level:3", limit=2).problems()
    assert [p.id for p in third] == ["mine/0", "mine/2"] and third[-1] == third[1] == third[0:2][1]
    with pytest.raises(IndexError):
        third[2]


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ([{"question": "x", "answer": "1"}], {}, r":1: there is no column 'prompt'; there are 'question', 'answer'"),
        ([{"prompt": "x"}], {}, r":1: there is no column 'answer'; there are 'prompt'"),
        ([ROWS[0], {"prompt": "x", "answer": ["1"]}], {}, r":2: the column 'answer' is no text but \['1'\]"),
        (
            [ROWS[0], {"prompt": "x", "answer": "one"}],
            {"grader": "number"},
            r":2: the column 'answer' is no number but",
        ),
        ([{"prompt": "x", "answer": "K"}], {"grader": "choice"}, None),
        ([{"prompt": "x", "answer": "KO"}], {"grader": "choice"}, r":1: the column 'answer' is no letter but 'KO'"),
        ([{"prompt": "x", "answer": "("}], {"grader": "regex"}, r":1: the column 'answer' is no regular expression"),
        ([{"prompt": "x", "answer": " "}], {}, r":1: the column 'answer' is empty"),
        ([{"prompt": " ", "answer": "1"}], {}, r":1: the column 'prompt' is empty"),
        ([{"prompt": None, "answer": "1"}], {}, r":1: the column 'prompt' is empty"),
        ([{"prompt": "x", "answer": float("nan")}], {}, r":1: the column 'answer' is no text but nan"),
        ([ROWS[0], "[1]\n"], {}, r":2: a JSON list, not an object"),
        ([ROWS[0], '{"prompt"\n'], {}, r":2: not JSON"),
        ([ROWS[0]], {"where": "level:9"}, r"of 1 rows none has level:9"),
        ([], {}, r"is empty"),
        (['{"prompt": "\\ud83d", "answer": "1"}\n'], {}, r":1: the character .ud83d is half of a surrogate pair"),
        ([{"prompt": [{"role": "user"}], "answer": "1"}], {}, r":1: the column 'prompt' is no conversation"),
        (
            [{"prompt": [{"role": "assistant", "content": "a"}], "answer": "1"}],
            {},
            r":1: the conversation in 'prompt' ends with a turn of the assistant",
        ),
        (
            [{"prompt": "x", "answer": "B", "o": "ab"}],
            {"grader": "choice", "choices": "o"},
            r":1: the column 'o' is no list",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path, content, settings, message):
    made = task(lines(tmp_path / "bad.jsonl", *content), **settings)
    if message is None:
        assert made.problems()[0].answer == content[0]["answer"]
        return
    with pytest.raises(DataError, match=f"bad.jsonl.*{message}|bad.jsonl{message}") as caught:
        made.problems()
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"prompt,answer\nx,1\ny,1,2\n", r"a.csv:3: 3 cells, but the first line names 2 columns"),
        ("a.csv", b'prompt,answer\n"x\ny",1\nz\n', r"a.csv:4: 1 cells"),
        ("a.csv", b'prompt,answer\n"x,1\ny,2\n', r"a.csv:3: "),
        ("a.csv", b"prompt,prompt\nx,1\n", r"a.csv:1: the columns are named 'prompt', 'prompt'"),
        ("a.csv", b"prompt;answer\nx;1\n", r"a.csv:1: one column, 'prompt;answer'.*\n.*separate columns by commas"),
        ("a.csv", b"prompt\tanswer\nx\t1\n", r"a.csv:1: one column.*\n.*let the file's name end in .tsv"),
        ("a.tsv", b"prompt,answer\nx,1\n", r"a.tsv:1: one column.*\n.*let the file's name end in .csv"),
        ("a.csv", b"prompt,answer\rx,1\r", r"a.csv:1: new-line character.*\n.*end lines with a line feed"),
        ("a.csv", b'{"prompt": "x", "answer": "1"}\n', r"a.csv:1: JSON.*\n.*name end in .jsonl or .json"),
        ("a.csv", b'[{"prompt": "x"}]', r"a.csv:1: JSON.*\n.*name end in .jsonl or .json"),
        ("a.csv", b"prompt,answer\n", r"a.csv is empty"),
        ("a.csv", "prompt,answer\nx,1\n".encode("utf-16"), r"a.csv is text in UTF-16\n.*iconv -f UTF-16"),
        ("a.csv", "prompt,answer\nx,1\n".encode("utf-16-le"), r"a.csv is no text in UTF-8: it holds zero bytes"),
        ("a.csv", gzip.compress(b"prompt,answer\n", mtime=0)[:20], r"a.csv is compressed by gzip\n.*gunzip .*a.csv"),
        ("a.xlsx", b"PK\x03\x04rest", r"a.xlsx is a zip archive, as Excel's.*\n.*as CSV in UTF-8"),
        ("a.jsonl", b"PAR1rest", r"a.jsonl is a Parquet file\n.*end in .parquet"),
        ("a.jsonl", b"prompt,answer\nx,1\n", r"a.jsonl:1: not JSON.*\n.*name of a table ends in .csv"),
        ("a.jsonl", b'{"prompt": "x"}\r{"prompt": "y"}\r', r"a.jsonl:1: not JSON.*\n.*end lines with a line feed"),
        ("a.jsonl", b'{"prompt": "x", "answer": "1"}\n{"prompt": "y', r"a.jsonl:2: not JSON.*\n.*if it was cut"),
        ("a.json", b'{\n "prompt": "x"\n}', r"a.json:1: not JSON.*\n.*object on a line of its own"),
        ("a.json", b"[]", r"a.json is empty"),
        ("a.csv", b"prompt,answer\ncaf\xe9,1\n", r"a.csv:2: not UTF-8 at byte 4"),
        ("a.parquet", b"", r"a.parquet: not readable as Parquet \(.*0 bytes\)\n.*if it was cut"),
        ("a.parquet", b"PAR1" + b"x" * 100, r"a.parquet: not readable as Parquet.*\n.*if it was cut"),
    ],
)
def test_a_bad_table_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        task(tmp_path / name).problems()
    with pytest.raises(DataError, match=f"nowhere{name}: No such file"):
        task(tmp_path / f"nowhere{name}").problems()
    (tmp_path / f"folder{name}").mkdir()
    with pytest.raises(DataError, match=f"folder{name}: Is a directory"):
        task(tmp_path / f"folder{name}").problems()


def test_a_blank_line_above_the_names_of_columns_and_a_table_without_rows(tmp_path):
    (tmp_path / "a.csv").write_text("\n\nprompt,answer\nx,1\n")
    assert task(tmp_path / "a.csv").problems()[0].prompt == "x"
    with pytest.raises(DataError, match=r"a.csv:4: the column 'answer' is no number"):
        (tmp_path / "a.csv").write_text("\n\nprompt,answer\nx,one\n")
        task(tmp_path / "a.csv", grader="number").problems()
    datasets.Dataset.from_list(ROWS).select([]).to_parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(DataError, match=r"a.parquet is empty"):
        task(tmp_path / "a.parquet").problems()


def test_a_question_of_100000_characters_in_a_cell(tmp_path):
    (tmp_path / "long.csv").write_text(f'prompt,answer\n"{"word, " * 40_000}",1\n')
    assert len(task(tmp_path / "long.csv").problems()[0].prompt) == 240_000
